"""Models of KerasHub and zeromodels at random weights, in configurations that are small or larger.

They are named as in the documentation. Nothing is downloaded.
"""

import keras
import numpy as np

BACKBONE = {
    "backbone_hidden_sizes": (16, 32, 48, 64),
    "backbone_block_repeats": (1, 1, 1, 1),
    "backbone_embedding_size": 8,
    "backbone_layer_type": "basic",
    "encoder_in_channels": (32, 48, 64),
}


def keras_hub_d_fine(size=64, width=32, queries=12, layers=2, method="default", points=(3, 6)):
    from keras_hub import models

    hgnet = models.HGNetV2Backbone(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[
            [8, 8, 16, 1, 3, 3],
            [16, 8, 32, 1, 3, 3],
            [32, 16, 48, 1, 3, 5],
            [48, 16, 64, 1, 3, 5],
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 48, 64],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=(size, size, 3),
        out_features=["stage3", "stage4"],
        data_format="channels_last",
    )
    return models.DFineBackbone(
        backbone=hgnet,
        decoder_in_channels=[width, width],
        encoder_hidden_dim=width,
        num_denoising=0,
        num_labels=5,
        hidden_dim=width,
        learn_initial_query=False,
        num_queries=queries,
        anchor_image_size=(size, size),
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[48, 64],
        encode_proj_layers=[1],
        num_attention_heads=4,
        encoder_ffn_dim=2 * width,
        num_encoder_layers=1,
        hidden_expansion=0.34,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=layers,
        decoder_attention_heads=4,
        decoder_ffn_dim=2 * width,
        decoder_method=method,
        decoder_n_points=list(points),
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        out_features=["stage3", "stage4"],
        image_shape=(size, size, 3),
        data_format="channels_last",
        seed=0,
    )


def _detr(size, width, queries, layers):
    return {
        **BACKBONE,
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": 2 * width,
        "encoder_num_heads": 4,
        "hidden_dim": width,
        "decoder_num_layers": layers,
        "decoder_ffn_dim": 2 * width,
        "decoder_num_heads": 4,
        "num_queries": queries,
        "num_classes": 5,
        "image_size": size,
    }


def rt_detr(size=64, width=32, queries=12, layers=2):
    from zeromodels.models.rt_detr import RTDETRDetect

    return RTDETRDetect(**_detr(size, width, queries, layers))


def rt_detr_v2(size=64, width=32, queries=12, layers=2):
    from zeromodels.models.rt_detr_v2 import RTDETRV2Detect

    return RTDETRV2Detect(**_detr(size, width, queries, layers))


def rf_detr(size=64, width=32, queries=12, layers=2):
    from zeromodels.models.rf_detr import RFDETRDetect

    return RFDETRDetect(
        hidden_dim=width,
        backbone_hidden_size=width,
        backbone_num_heads=4,
        backbone_num_layers=4,
        out_feature_indexes=[1, 3],
        patch_size=16,
        num_windows=2,
        positional_encoding_size=size // 16,
        resolution=size,
        dec_layers=layers,
        sa_nheads=4,
        ca_nheads=4,
        num_queries=queries,
        num_classes=5,
        group_detr=1,
        dim_feedforward=2 * width,
    )


def d_fine(size=64, width=32, queries=12, layers=2):
    from zeromodels.models.dfine import DFineDetect

    return DFineDetect(
        stem_channels=(3, 8, 8),
        stage_in_channels=(8, 16, 32, 48),
        stage_mid_channels=(8, 8, 16, 16),
        stage_out_channels=(16, 32, 48, 64),
        stage_num_blocks=(1, 1, 1, 1),
        encoder_in_channels=(32, 48, 64),
        encoder_hidden_dim=width,
        encoder_ffn_dim=2 * width,
        hidden_dim=width,
        decoder_num_layers=layers,
        decoder_ffn_dim=2 * width,
        decoder_n_points=[3, 6, 3],
        num_classes=5,
        num_queries=queries,
        image_size=size,
    )


def _segment(size, width, queries, layers):
    return {
        "backbone_embed_dim": 16,
        "backbone_depths": (1, 1, 1, 1),
        "backbone_num_heads": (1, 2, 2, 4),
        "backbone_window_size": 4,
        "hidden_dim": width,
        "mask_feature_size": width,
        "encoder_num_layers": layers,
        "encoder_ffn_dim": 2 * width,
        "decoder_num_layers": layers,
        "decoder_ffn_dim": 2 * width,
        "num_heads": 4,
        "num_queries": queries,
        "num_classes": 5,
        "image_size": size,
    }


def mask2former(size=64, width=32, queries=12, layers=2):
    from zeromodels.models.mask2former import Mask2FormerUniversalSegment

    return Mask2FormerUniversalSegment(**_segment(size, width, queries, layers))


def oneformer(size=64, width=32, queries=12, layers=2):
    from zeromodels.models.oneformer import OneFormerUniversalSegment

    return OneFormerUniversalSegment(**_segment(size, width, queries, layers))


def grounding_dino(size=64, width=32, queries=12, layers=2):
    from zeromodels.models.grounding_dino import GroundingDinoDetect

    return GroundingDinoDetect(
        d_model=width,
        encoder_layers=layers,
        encoder_ffn_dim=2 * width,
        encoder_attention_heads=4,
        decoder_layers=layers,
        decoder_ffn_dim=2 * width,
        decoder_attention_heads=4,
        num_queries=queries,
        max_text_len=8,
        backbone_embed_dim=16,
        backbone_depths=(1, 1, 1, 1),
        backbone_num_heads=(1, 2, 2, 4),
        backbone_window_size=2,
        text_vocab_size=2000,
        text_hidden_size=16,
        text_num_layers=1,
        text_num_heads=2,
        text_intermediate_size=32,
        text_max_position_embeddings=16,
    )


MODELS = {
    "KerasHub D-FINE": keras_hub_d_fine,
    "RT-DETR": rt_detr,
    "RT-DETRv2": rt_detr_v2,
    "RF-DETR": rf_detr,
    "D-FINE": d_fine,
    "Mask2Former": mask2former,
    "OneFormer": oneformer,
    "Grounding DINO": grounding_dino,
}


def inputs_of(model, size=64, batch=2):
    """Returns random inputs of a model, in its structure."""
    rng = np.random.default_rng(0)

    def draw(each):
        shape = [batch, *(size if one is None else one for one in each.shape[1:])]
        if len(shape) == 2:
            shape = [batch, each.shape[1] or 8]
            return np.ones(shape, each.dtype)
        return rng.uniform(size=shape).astype(each.dtype)

    return keras.tree.map_structure(draw, model.input)


def with_noise(model, scale=0.05):
    """Returns the model with noise on its weights: what starts at zero would hide differences."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype) and "variance" not in weight.path:
            weight.assign_add(rng.normal(0, scale, weight.shape).astype(weight.dtype))
    return model
