"""What a network costs: one module for each way of counting.

`exact` counts the parameters and multiply-adds of the network as it runs;
`reference` counts them as the paper's tables do, from gates alone. Both know a
network by its `graph.walk.Graph` only. A new cost is a new module here, a
function of a `Graph`; `Counts` is what result.json and the tables show.
"""
