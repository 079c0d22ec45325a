"""How MLServer serves the model of ``bench_oip``; copied beside MLServer's settings and run in its own venv."""

import numpy as np
import onnxruntime  # type: ignore[import-not-found,unused-ignore]
from mlserver import MLModel, types  # type: ignore[import-not-found,unused-ignore]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found,unused-ignore]


class OnnxModel(MLModel):  # type: ignore[misc,unused-ignore]
    """One session in MLServer's own process."""

    async def load(self) -> bool:
        """Load the model named in the settings."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        """Answer one request."""
        features = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        (probabilities,) = self._session.run(None, {"features": features})
        return types.InferenceResponse(
            id=payload.id, model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities)]
        )
