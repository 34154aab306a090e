"""containerd.services.version.v1.Version and grpc.health.v1.Health."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

import kontti
from kontti.api.health.v1 import health_pb2
from kontti.api.services.version.v1 import version_pb2 as pb
from kontti.services.rpc import Context

API_VERSION = "v2.4.0"
"""The containerd whose API this is: clients turn features on by it."""


class VersionService:
    """Says which containerd's API this is, and in the revision which kontti serves it."""

    def version(self, _request: Empty, _context: Context) -> pb.VersionResponse:
        return pb.VersionResponse(version=API_VERSION, revision=f"kontti-{kontti.__version__}")


class HealthService:
    """Serving from the moment it answers."""

    def check(
        self, _request: health_pb2.HealthCheckRequest, _context: Context
    ) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
