"""Folders as finished runs leave them, with a random network."""

import jax
from keeping import randomised
import numpy as np

import dnal_jax
from dnal_jax import models
from dnal_jax.data.preprocessing import Preprocessing
from dnal_jax.graph import walk
from dnal_jax.parallel import mesh
from dnal_jax.training.evaluate import Evaluator
from dnal_jax.workdir import architecture, weights


def save(folder, data, class_names, name='vgg7_digits'):
  """Loads what a run on `data` leaves; its network is unpruned."""
  net = models.get(name).build(classes=len(class_names))
  preprocessing = Preprocessing.of(data)
  shape = preprocessing.image_shape
  keep = walk.graph_of(net, shape).gates
  architecture.write(folder, name, 1.0, class_names, preprocessing, keep)
  variables = randomised(net, shape, np.random.default_rng(0))
  weights.write(folder, jax.tree.map(np.float32, variables))
  return dnal_jax.load(folder)


def evaluated(model, source, split):
  """Logits [N, classes] of the evaluation of a run on a whole split."""
  evaluator, logits = Evaluator(source), []
  with jax.set_mesh(mesh.make_mesh()):
    for inputs, index in evaluator._each(split):
      _, of_batch, weight = evaluator._compiled(*model, inputs, index)
      logits.append(np.asarray(of_batch)[np.asarray(weight) > 0])
  return np.concatenate(logits)
