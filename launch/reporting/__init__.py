"""Result files, tables, figures and reports."""
