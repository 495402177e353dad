"""Methods of making a network smaller, beside each other at equal cost.

`python -m dnal_jax.compare --help` has the command. A method of your own is
registered in a config file:

    from dnal_jax import compare

    compare.register(compare.Method('mine', 'what it does', make))
"""

from dnal_jax.compare.methods import METHODS, Method, Problem, register

__all__ = ['METHODS', 'Method', 'Problem', 'register']
