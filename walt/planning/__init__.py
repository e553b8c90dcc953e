"""What a program costs, from shapes alone: its operations, its memory, and the table that says so."""
