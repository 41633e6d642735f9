from deflate_plugin import Deflate
from novacron_testkit.contracts import CompressionContract


class TestDeflate(CompressionContract):
    provider = Deflate
