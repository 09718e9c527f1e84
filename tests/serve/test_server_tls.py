"""TLS end to end: ``--ssl_config_file`` with a certificate authority made for the test."""

import json

import grpc
import pytest
import trustme
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_service_pb2_grpc

from serve.config_files import SSLConfig
from tests.serve.grpc_calls import floats, predict, predict_request
from tests.serve.processes import running_server


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def key_of(certificate):
    return certificate.private_key_pem.bytes()


def chain_of(certificate):
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


def test_only_clients_of_the_authority_are_answered(tmp_path, zoo, authority):
    own = authority.issue_cert("localhost")
    config = SSLConfig(
        server_key=key_of(own).decode(),
        server_cert=chain_of(own).decode(),
        custom_ca=authority.cert_pem.bytes().decode(),
        client_verify=True,
    )
    ssl_file = tmp_path / "ssl.config"
    ssl_file.write_text(text_format.MessageToString(config))
    socket_path = tmp_path / "serve.sock"
    root = authority.cert_pem.bytes()

    def credentials(client):
        return grpc.ssl_channel_credentials(root, key_of(client), chain_of(client))

    known, stranger = authority.issue_cert("client"), trustme.CA().issue_cert("client")
    with running_server(
        tmp_path,
        "--model_name=zoo",
        f"--model_base_path={zoo}",
        f"--ssl_config_file={ssl_file}",
        f"--grpc_socket_path={socket_path}",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=600000",
        credentials=credentials(known),
    ) as server:
        assert predict(server, "zoo", x=floats(2)).outputs["y"].float_val == [3.0]

        target = f"localhost:{server.grpc_port}"
        refused = {
            "clear text": grpc.insecure_channel(target),
            "no certificate": grpc.secure_channel(target, grpc.ssl_channel_credentials(root)),
            "a stranger's": grpc.secure_channel(target, credentials(stranger)),
            "the server unknown": grpc.secure_channel(target, grpc.ssl_channel_credentials()),
        }
        for why, channel in refused.items():
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            with channel, pytest.raises(grpc.RpcError) as caught:
                stub.Predict(predict_request("zoo", x=floats(2)), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, why
        assert predict(server, "zoo", x=floats(2)).outputs["y"].float_val == [3.0]

        # As in the binary TLS covers gRPC, the UNIX socket included, and the log says so.
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(f"unix:{socket_path}", credentials(known), options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            reply = stub.Predict(predict_request("zoo", x=floats(2)), timeout=10)
            assert reply.outputs["y"].float_val == [3.0]
        status, _, body = server.http("/v1/models/zoo:predict", b'{"instances": [2.0]}')
        assert (status, json.loads(body)) == (200, {"predictions": [3.0]})
        assert "covers gRPC only" in server.log
