"""What pyproject.toml cannot say: a wheel has the folder configs/ inside the
package, where `--config=NAME` finds it."""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=['dnal_jax*']),
    'dnal_jax.configs',
  ],
  package_dir={'dnal_jax.configs': 'configs'},
)
