"""Classify, Regress and MultiInference over gRPC, as a client of TensorFlow Serving meets them."""

import grpc
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from tests.serve.grpc_calls import add_example, refusal

Code = grpc.StatusCode


def regression_request():
    request = regression_pb2.RegressionRequest()
    request.model_spec.name = "tf1"
    request.model_spec.signature_name = "regress_x_to_y"
    return request


def test_classify(server):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "tf1"
    request.model_spec.signature_name = "classify_x_to_y"
    add_example(request, 2.0, 4.0)
    reply = server.prediction.Classify(request)
    classes = [entry.classes[0] for entry in reply.result.classifications]
    assert [(entry.label, entry.score) for entry in classes] == [("3.000000", 3), ("4.000000", 4)]
    assert reply.model_spec.version.value == 123
    assert reply.model_spec.signature_name == "classify_x_to_y"
    request.model_spec.signature_name = "scores_only"
    (first, _) = server.prediction.Classify(request).result.classifications
    assert (first.classes[0].label, first.classes[0].score) == ("", 3.0)


def test_regress(server):
    request = regression_request()
    add_example(request, 2.0, 5.0)
    reply = server.prediction.Regress(request)
    assert [entry.value for entry in reply.result.regressions] == [3.0, 4.5]


def test_examples_share_their_context(server):
    request = regression_request()
    shared = request.input.example_list_with_context
    shared.context.features.feature["x"].float_list.value.append(8.0)
    shared.examples.add()
    own = shared.examples.add()
    own.features.feature["x"].float_list.value.append(2.0)
    reply = server.prediction.Regress(request)
    assert [entry.value for entry in reply.result.regressions] == [6.0, 3.0]
    shared.context.features.feature["unused"].bytes_list.value.append(bytes(1 << 20))
    for _ in range(150):
        shared.examples.add()
    code, details = refusal(server.prediction.Regress, request)
    assert code == Code.INVALID_ARGUMENT
    assert "bytes for each of 152 examples is more than" in details


def test_classify_and_regress_refusals(server):
    request = regression_request()
    assert refusal(server.prediction.Regress, request) == (
        Code.INVALID_ARGUMENT,
        "Input is empty.",
    )
    add_example(request, 1.0)
    request.model_spec.signature_name = "nope"
    assert refusal(server.prediction.Regress, request) == (
        Code.INVALID_ARGUMENT,
        "No signature was found with the name: nope",
    )
    request.model_spec.signature_name = "classify_x_to_y"
    assert refusal(server.prediction.Regress, request) == (
        Code.INVALID_ARGUMENT,
        "Expected regression signature method_name to be tensorflow/serving/regress. "
        "Was: tensorflow/serving/classify",
    )


def multi_inference(*tasks):
    request = inference_pb2.MultiInferenceRequest()
    for signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "tf1"
        task.model_spec.signature_name = signature
    add_example(request, 2.0)
    return request


def test_multi_inference(server):
    request = multi_inference(("regress_x_to_y2", "regress"), ("classify_x_to_y", "classify"))
    first, second = server.prediction.MultiInference(request).results
    assert first.regression_result.regressions[0].value == 4.0
    assert first.model_spec.signature_name == "regress_x_to_y2"
    assert second.classification_result.classifications[0].classes[0].score == 3.0
    assert second.model_spec.version.value == 123


def test_multi_inference_refusals(server):
    call = server.prediction.MultiInference
    twice = multi_inference(("regress_x_to_y", "regress"), ("regress_x_to_y", "regress"))
    assert refusal(call, twice) == (
        Code.INVALID_ARGUMENT,
        "Duplicate evaluation of signature: regress_x_to_y",
    )
    unknown = multi_inference(("nope", "regress"))
    assert refusal(call, unknown) == (
        Code.INVALID_ARGUMENT,
        "Requested signature not found in model graph: nope",
    )
    method = multi_inference(("serving_default", "predict"))
    assert refusal(call, method) == (
        Code.UNIMPLEMENTED,
        "Unsupported signature method_name: tensorflow/serving/predict",
    )
