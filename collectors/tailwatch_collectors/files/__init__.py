"""Files: what trainers already write, sent to the service without a line in the trainer.

`tail` follows dumps of per-token log-probs; `importer` posts scalar histories. One module per format says which files
there are, when one is whole, and how it becomes rows; the rest is the same for all of them. This runs in a process of
its own, so unlike the collector it waits for every acknowledgement, and says what it could not read.
"""
