"""The report page, its plots and pictures, and the model cards."""
