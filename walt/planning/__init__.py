"""What a program costs, from its shapes or compiled: operations, memory, collectives, and the tables that say so."""
