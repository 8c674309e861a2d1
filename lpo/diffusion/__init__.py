"""The maths of one diffusion step: schedules, transitions, guidance. It knows no model and no file."""
