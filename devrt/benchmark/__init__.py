"""What `devrt bench` measures, and how: measure.py repeats and judges, cases.py names the work, main.py reports it."""
