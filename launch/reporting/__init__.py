"""Result records, tables, figures and HTML reports."""
