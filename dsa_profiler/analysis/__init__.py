"""From trace columns to numbers: pure, no file, no clock, no print."""
