"""Reading and writing traces in the nsys SQLite schema."""
