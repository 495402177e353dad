"""Folders of images: which files are found, and in which orientation."""

import io
import itertools
import os
import shutil

from image_folder import CLASSES, open_source, take, write_folder
import numpy as np
from photographs import jpeg
from PIL import Image, ImageOps
import pytest

from dnal_jax import errors
from dnal_jax.data import crops, exif, folder
from dnal_jax.workdir import data_file

pytestmark = pytest.mark.xdist_group('streamed')  # one process imports TF
ORIENTATION = 0x0112  # Exif's tag


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('folder'))


@pytest.fixture
def root(original, tmp_path):
  """A copy that a test may change."""
  return shutil.copytree(original, tmp_path / 'photographs')


def contents(root):
  return folder.contents(root, folder.list_images(root))


# Which files are images.


@pytest.mark.parametrize('ending', ['bmp', 'gif', 'jfif', 'JPG', 'png', 'webp'])
def test_every_format_that_can_be_decoded_is_read(root, ending):
  for path in list((root / 'train' / 'bee').iterdir()):
    kind = {'jfif': 'JPEG', 'JPG': 'JPEG'}.get(ending, ending)
    image = Image.open(path).convert('RGB')
    image.save(path.with_suffix(f'.{ending}'), kind)
    if path.suffix != f'.{ending}':
      path.unlink()
  assert contents(root).parts['train/bee'].images == 9
  assert not folder.list_images(root).left_out
  with_bees = take(open_source(root, seed=1, batch_size=22), 0, 1)
  ((images, labels),) = with_bees
  assert np.bincount(labels, minlength=3)[1] >= 4
  assert images[labels == 1].std() > 20  # photographs, not black


def test_directories_below_a_class_belong_to_it(root, original):
  """The images are the same, in another order; a loop of links ends."""
  below = root / 'train' / 'bee' / 'a' / 'b'
  below.mkdir(parents=True)
  for path in list((root / 'train' / 'bee').glob('?.jpg')):
    path.rename(below / path.name)
  (below / 'loop').symlink_to(root / 'train' / 'bee')
  listing = folder.list_images(root)
  assert {os.path.basename(p) for p in listing.train.paths} == {
    os.path.basename(p) for p in folder.list_images(original).train.paths
  }
  assert len(listing.sizes['train', 'bee']) == 9


def test_a_folder_of_one_class_is_refused(root):
  for part, name in itertools.product(('train', 'val'), ('ant', 'cow')):
    shutil.rmtree(root / part / name, ignore_errors=True)
  with pytest.raises(errors.UserError, match="train' has one class, 'bee'; a"):
    folder.list_images(root)


def test_what_is_left_out_is_counted(root, capsys):
  bees = root / 'train' / 'bee'
  for i, path in enumerate(sorted(bees.iterdir())[:5]):
    path.rename(path.with_suffix('.tiff' if i < 3 else '.HEIC'))
  for name in ('notes', '.DS_Store', '._1.jpg'):
    (bees / name).write_bytes(b'x')
  (root / 'val' / 'README.md').write_text('Bees and others.')
  open_source(root)
  line = capsys.readouterr().out.strip()
  assert line.startswith(
    f"'{root}': 22 images in train, 7 in val, 3 classes; left out:"
  )
  for kind in (
    *('2 .heic', '3 .tiff', '2 hidden', '1 without an ending'),
    '1 .md beside the classes',
  ):
    assert kind in line
  assert '.webp' in line  # what is read


def test_a_class_that_is_left_out_as_a_whole(root):
  for path in list((root / 'val' / 'cow').iterdir()):
    path.rename(path.with_suffix('.heic'))
  with pytest.raises(errors.UserError) as raised:
    open_source(root)
  for part in ("val' has no image of cow", '2 .heic', 'add some, or remove'):
    assert part in str(raised.value)


def test_only_train_and_val_count(root, original):
  (root / 'test' / 'unknown').mkdir(parents=True)
  (root / 'test' / 'unknown' / '0.jpg').write_bytes(b'')
  (root / 'annotations').mkdir()
  (root / '.git' / 'objects').mkdir(parents=True)
  (root / 'train' / '.thumbnails').mkdir()
  assert contents(root) == contents(original)
  assert folder.class_names(root) == list(CLASSES)


@pytest.mark.parametrize(
  ('part', 'other'), [('train', 'val'), ('val', 'train')]
)
def test_a_class_of_one_part_only_is_named(root, part, other):
  (root / part / 'dog').mkdir()
  with pytest.raises(errors.UserError) as raised:
    open_source(root)
  assert f"{part}' has the class 'dog'" in str(raised.value)
  assert f"{other}' lacks; add it there" in str(raised.value)


def test_a_file_name_that_is_not_utf8(root):
  name = os.fsencode(root / 'train' / 'ant') + b'/\xff\xfe.jpg'
  os.rename(root / 'train' / 'ant' / '0.jpg', name)
  source = open_source(root, batch_size=22)
  take(source, 0, 1)
  assert source._splits['train'].records.name(0)


# Whether it is still the same folder.


def rename_class(root):
  """Which changes the order, and hence every label."""
  for part in ('train', 'val'):
    (root / part / 'ant').rename(root / part / 'zebra')


def remove_image(root):
  (root / 'train' / 'bee' / '1.jpg').unlink()


def swap_images(root):
  a, b = root / 'train' / 'ant' / '0.jpg', root / 'train' / 'bee' / '1.jpg'
  one, other = a.read_bytes(), b.read_bytes()
  a.write_bytes(other)
  b.write_bytes(one)


def rename_image(root):
  image = root / 'val' / 'cow' / '2.jpg'
  image.rename(image.with_name('new.jpg'))


def add_class(root):
  for part in ('train', 'val'):
    shutil.copytree(root / part / 'cow', root / part / 'dog')


@pytest.mark.parametrize(
  ('change', 'difference'),
  [
    (rename_class, "class 0 was 'ant' and is 'bee'"),
    (remove_image, "'train/bee' had 9 images and has 8"),
    (swap_images, "'train/ant' has other images than before"),
    (rename_image, "'val/cow' has other images than before"),
    (add_class, "class 3, 'dog', is new"),
  ],
)
def test_a_run_goes_on_with_the_data_it_began_with_only(
  root, tmp_path, change, difference
):
  data_file.check_or_write(tmp_path, str(root), contents(root))
  data_file.check_or_write(tmp_path, str(root), contents(root))
  change(root)
  with pytest.raises(errors.UserError) as raised:
    data_file.check_or_write(tmp_path, str(root), contents(root))
  assert f"'{root}' has changed" in str(raised.value)
  assert f'{difference}. Bring it back, ' in str(raised.value)
  may_go_on = 'class' not in difference.split()[0]
  assert ("data.json' to go on" in str(raised.value)) == may_go_on


@pytest.mark.parametrize(
  'text',
  [
    *('', '[]', '{"class_names": ["a"]}', '{"class_names": 1, "parts": {}}'),
    '{"class_names": ["a"], "parts": {"train": [1]}}',
    '{"class_names": ["a"], "parts": {"train": ["1", "x"]}}',
    '{"class_names": [2], "parts": {"train": [1, "x"]}}',
  ],
)
def test_a_damaged_data_file_is_named(root, tmp_path, text):
  (tmp_path / data_file.NAME).write_text(text)
  with pytest.raises(errors.UserError, match=r'data\.json.*restore it'):
    data_file.check_or_write(tmp_path, str(root), contents(root))


# Orientation.


def turned(data, orientation, order='little'):
  """The JPEG with an orientation noted, its pixels unchanged."""
  tag = b''.join(
    n.to_bytes(size, order)
    for n, size in ((ORIENTATION, 2), (3, 2), (1, 4), (orientation, 2), (0, 2))
  )
  mark = b'II*\0' if order == 'little' else b'MM\0*'
  tiff = mark + (8).to_bytes(4, order) + (1).to_bytes(2, order) + tag + bytes(4)
  body = b'Exif\0\0' + tiff
  segment = b'\xff\xe1' + (len(body) + 2).to_bytes(2, 'big') + body
  # After the JFIF header, as Pillow writes it, or at once, as cameras do.
  at = 20 if orientation % 2 else 2
  return data[:at] + segment + data[at:]


def test_all_eight_orientations_are_those_of_pil():
  """Crops of a JPEG are exactly those of its pixels as PIL turns them.

  Its colours have the full resolution: otherwise those at the edges of a part
  differ by a level or two from those of the whole image.
  """
  tf = crops.import_tensorflow()
  file = io.BytesIO()
  image = Image.open(io.BytesIO(jpeg(1, 90, 61, rng=np.random.default_rng(0))))
  image.save(file, 'JPEG', subsampling=0)
  for orientation, order in itertools.product(range(1, 9), ('little', 'big')):
    data = turned(file.getvalue(), orientation, order)
    assert exif.orientation(data) == orientation
    upright = Image.fromarray(
      tf.io.decode_jpeg(data, 3, dct_method='INTEGER_ACCURATE').numpy()
    )
    upright.getexif()[ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(upright)
    png = io.BytesIO()
    upright.save(png, 'PNG')
    for size, short_side in ((48, 50), (61, 61)):
      options = {'size': size, 'short_side': short_side, 'upright': True}
      got = crops.centre_crop(data, **options)
      np.testing.assert_array_equal(
        got, crops.centre_crop(png.getvalue(), **options)
      )
    for draw in range(4):
      draws = tf.random.stateless_uniform((crops.DRAWS,), (0, draw))
      options = {'size': 32, 'scale': (0.3, 1.0), 'flip': True, 'upright': True}
      got = crops.random_crop(data, draws, **options)
      np.testing.assert_array_equal(
        got, crops.random_crop(png.getvalue(), draws, **options)
      )


def test_published_data_sets_are_read_as_published():
  data = jpeg(1, 90, 61, rng=np.random.default_rng(0))
  options = {'size': 48, 'short_side': 50, 'upright': False}
  np.testing.assert_array_equal(
    crops.centre_crop(turned(data, 6), **options),
    crops.centre_crop(data, **options),
  )


def test_a_folder_is_read_upright(root):
  """In training and in evaluation: images that are stored upside down."""
  pixels = np.zeros((60, 60, 3), np.uint8)
  pixels[:30] = 255  # on top
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'JPEG')
  for path in [p for p in root.rglob('*') if p.is_file()]:
    path.unlink()
    path.with_suffix('.jpg').write_bytes(turned(file.getvalue(), 3))
  source = open_source(root, crop_scale=(1.0, 1.0))
  ((train, _),) = take(source, 0, 1)
  test, *_ = next(iter(source.eval_inputs('test')))[0]
  for images in (train, np.asarray(test)):
    assert images[:, :8].mean() < 10
    assert images[:, -8:].mean() > 245


def test_damaged_metadata_never_fails():
  data = turned(jpeg(0, 40, 40, rng=np.random.default_rng(0)), 6)
  rng = np.random.default_rng(0)
  for _ in range(3000):
    changed = bytearray(data[: rng.integers(0, 120)])
    for at in rng.integers(0, max(len(changed), 1), 3):
      changed[at : at + 1] = rng.bytes(1)
    assert 1 <= exif.orientation(bytes(changed)) <= 8
