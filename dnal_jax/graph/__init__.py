"""The graph of a network and its restriction to some of the channels.

`walk` finds what each layer reads and writes, `surgery` removes channels from
a network and its variables, `difference` finds where two networks differ.
"""
