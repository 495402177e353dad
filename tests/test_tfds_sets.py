"""Downloads of data sets end soon where there is no network."""

from concurrent import futures
import http.server
import time

from etils import epath
import pytest

from dnal_jax import errors
from dnal_jax.data import tfds_sets


def test_without_a_network_a_download_fails_soon(monkeypatch, tmp_path, capsys):
  monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # refuses
  for name in ('no_proxy', 'NO_PROXY'):
    monkeypatch.delenv(name, raising=False)
  started = time.monotonic()
  with pytest.raises(errors.UserError) as raised:
    tfds_sets.prepared('cifar10', str(tmp_path))
  assert time.monotonic() - started < 60
  message = f"data set 'cifar10' is not prepared in '{tmp_path}'"
  assert f'{message}; downloading it' in capsys.readouterr().out
  assert message in str(raised.value)
  assert 'no answer from www.cs.toronto.edu: ' in str(raised.value)
  assert 'TFDS_DATA_DIR or data.dir' in str(raised.value)


def test_archives_that_were_downloaded_need_no_network(tmp_path):
  """As tensorflow-datasets records them."""
  builder = tfds_sets._builder('cifar10', str(tmp_path))
  from tensorflow_datasets.core.download import checksums, resource

  (url,) = tfds_sets._archives(builder, str(tmp_path))
  assert url.startswith('https://www.cs.toronto.edu/')
  file = epath.Path(tmp_path / 'downloads/cifar10/archive.tar.gz')
  file.parent.mkdir(parents=True)
  file.write_bytes(b'')
  info = checksums.UrlInfo(size=0, checksum='', filename=file.name)
  resource.write_info_file(url, file, 'cifar10', file.name, info)
  assert tfds_sets._archives(builder, str(tmp_path)) == []


class Refusing(http.server.BaseHTTPRequestHandler):
  """Answers that what is asked for is not there."""

  def do_GET(self):
    self.send_error(404)

  def log_message(self, format, *args):
    pass


def test_a_host_that_answers_is_waited_for(monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  server = http.server.HTTPServer(('127.0.0.1', 0), Refusing)
  server.timeout = 10
  with server, futures.ThreadPoolExecutor(1) as pool:
    served = pool.submit(server.handle_request)
    answers, silent = server.server_address[1], 9
    tfds_sets._check_network(
      f'http://127.0.0.1:{port}/x' for port in (silent, answers)
    )
    served.result()
  tfds_sets._check_network(['ftp://127.0.0.1:9/x'])
  with pytest.raises(ConnectionError, match=r'127.0.0.1:9: ConnectionError'):
    tfds_sets._check_network(['http://127.0.0.1:9/x'])
