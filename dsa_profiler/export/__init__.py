"""Files that people paste or ship."""
