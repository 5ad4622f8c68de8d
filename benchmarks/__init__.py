"""Speed against peers and limits: every figure is a ratio of two things measured in the same run, never a timed test."""
