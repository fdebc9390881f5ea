"""Rules that propose traces, one file per op family."""
