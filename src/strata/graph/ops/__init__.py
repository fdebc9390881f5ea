"""The op table, one file per family; importing this package fills it."""
