"""The commands of `scapre`, a module for each noun."""
