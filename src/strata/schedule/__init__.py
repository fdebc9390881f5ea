"""Loop to loop: schedule steps with legality, rules that propose traces, finalisation."""
