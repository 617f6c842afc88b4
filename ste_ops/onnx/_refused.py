"""The operators that no ONNX file holds, and why."""

from __future__ import annotations

_DRAWS = "it draws at random, and ONNX has no generator that would draw the same"
_SAMPLES = "it is part of a sampler, which stands before a net"
_TRAINS = "it is for training, and a file holds what a net computes"
_COMPILED = "it stands in what torch.compile makes, and not in an exported program"
_COUNTS = "ONNX has no product of packed bits; ste_ops.onnx.export writes the layers that pack_ makes with others"
_UNPACKS = "ONNX has no such integers; ste_ops.onnx.export writes the layers that pack_ makes with others"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("stochastic_round", "bernoulli", "categorical", "gumbel_noise", "subset"),
            *("alias_sample", "inverse_cdf_sample", "multinomial_with_replacement", "multinomial_without_replacement"),
            *("sum_tree_sample", "systematic_resample", "stratified_resample", "residual_resample"),
        ),
        _DRAWS,
    ),
    **dict.fromkeys(("alias_table", "sum_tree", "sum_tree_update_", "refuse_states", "raise_deferred"), _SAMPLES),
    **dict.fromkeys(
        (
            *("binarize_backward", "binarize_backward_held", "curve_backward", "curve_second"),
            *("learned_surrogate_backward", "lsq_backward", "lsq_backward_of_scale", "lsq_plus_backward"),
            *("lsq_plus_backward_of_parameters", "pact_backward", "xnor_weight_backward"),
            *("magnitude_aware_sign_backward", "scaled_sign_backward", "dorefa_weight_backward", "sr_ste_backward"),
            *("clip_gradient_value_backward", "clip_gradient_norm_backward", "categorical_backward"),
            *("subset_backward", "pack_codes", "total_norm", "clip_grads_with_norm_"),
            *("clip_grad_norm_", "clip_grad_value_", "clip_grad_agc_", "clip_per_sample_"),
        ),
        _TRAINS,
    ),
    "checked_steps": _COMPILED,
    "unpack_codes": _UNPACKS,
    **dict.fromkeys(("pack_bits", "unpack_bits", "binary_panels", "binary_linear", "binary_conv2d"), _COUNTS),
}


def refusal(operator: str) -> str:
    return f"ste_ops.{operator} cannot be exported to ONNX: {REFUSED[operator]}"
