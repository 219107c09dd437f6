"""Benchmarks on an object store: annotations are fetched, pictures stay and are named by their URI."""

import io
import runpy
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.core import storage
from cirray.data.config import CirrConfig, DataConfig, FashionIQConfig, WebDatasetConfig
from cirray.data.places import Place
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.data.config import DoctorRun
from cirray.pipelines.data.datasets import list_images, open_dataset
from cirray.pipelines.data.doctor import run_doctor
from cirray.pipelines.features.actors import decode_images

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))


@pytest.fixture(scope="module")
def bucket():
    """A function from a name to an S3 URI on a server in this process."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="cirray")
        yield lambda name: f"s3://cirray/{name}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        server.stop()


def test_cirr_on_an_object_store_reads_and_decodes_like_on_disk(bucket, tmp_path):
    root = MADE.write_cirr(tmp_path / "cirr")
    MADE.put_images(root / "dev" / f"{name}.png" for name in MADE.cirr_names("val"))
    storage.upload_folder(root, bucket("cirr"))
    data = DataConfig(format="cirr", cirr=CirrConfig(root=bucket("cirr")))
    dataset = open_dataset(data)
    assert dataset.queries == open_dataset(DataConfig(format="cirr", cirr=CirrConfig(root=str(root)))).queries
    assert Place.parse(dataset.images.paths["dev-0-0-img0"]).uri.startswith("s3://cirray/cirr/dev/dev-0-0-img0.png?")
    images = list_images(data, ("gallery",))
    columns = decode_images({"image_id": images.ids, "place": images.places}, {"size": 16}, {})
    assert len(columns["error"]) == 6 and not any(columns["error"])
    run = DoctorRun(folder=bucket("cirr"), dataset="cirr", splits=("val",), ray=RayConfig(enabled=False))
    assert [gallery.usable for gallery in run_doctor(run).galleries] == [6]


def test_images_outside_the_store_stay_where_they_are_and_suffixes_are_found(bucket, tmp_path):
    root = MADE.write_fashioniq(tmp_path / "fiq")
    MADE.put_image(root / "images" / "dress-val-0.png")
    storage.upload_folder(root, bucket("fiq"))
    inside = open_dataset(DataConfig(format="fashioniq", fashioniq=FashionIQConfig(root=bucket("fiq"))))
    assert inside.images.paths["dress-val-0"].partition("?")[0] == "s3://cirray/fiq/images/dress-val-0.png"
    config = FashionIQConfig(root=bucket("fiq"), images=str(root / "images"))
    outside = open_dataset(DataConfig(format="fashioniq", fashioniq=config))
    assert outside.images.paths["dress-val-0"] == str(root / "images" / "dress-val-0.png")


def test_shards_on_an_object_store_are_read_at_their_bytes(bucket, tmp_path):
    MADE.put_image(tmp_path / "a.png", (0, 0, 255))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    storage.upload_folder(tmp_path / "shards", bucket("shards"))
    config = DataConfig(format="webdataset", webdataset=WebDatasetConfig(root=bucket("shards")))
    images = list_images(config, ("pool",))
    columns = decode_images({"image_id": images.ids, "place": images.places}, {"size": 16}, {})
    assert list(columns["error"]) == [""] and columns["pixels"][0, 3, 3].tolist() == [0, 0, 255]
