"""What a network costs: one module for each way of counting.

`exact` counts the parameters and multiply-adds of the network as it runs;
`reference` counts them as the paper's tables do, from gates alone. Both read
nothing but the `graph.walk.Graph` of a network. A new cost, for example one
that is differentiable in the gates or a measured latency, is a new module here:
a function of a `Graph`, of `LayerSpec`s and kept channels, that no other room
needs to know about.
"""
