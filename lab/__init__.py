"""The lab: a small real RL run on one CPU core, so that everything else is built and tested on real log-probs."""
