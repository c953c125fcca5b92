"""Our code beside plain twins and rivals, run in turn in the same minute, as ratios."""
