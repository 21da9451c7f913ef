/* The preset dictionary of the manifest (docs/format.md, "Dictionary"). */

#include "manifest.h"

static const char TEXT[] =
    "bfloat16.float16.float64.embeddings.word_embeddings.position_embeddings.token_type_embedding"
    "s.LayerNormencoder.layer.0.attention.self.query.key.value.attention.output.dense.intermediat"
    "e.dense.output.dense.pooler.encoder.layers.encoder_layer_0.self_attention.in_proj_weight.out"
    "_proj.linear_1.linear_2.ln_1.ln_2.mlp.0.mlp.3cls_token.pos_embed.patch_embed.proj.blocks.0.n"
    "orm1.attn.qkv.attn.proj.norm2.mlp.fc1.mlp.fc2.head.gammastages.0.downsample.1.block.0.conv_d"
    "w.layer_scale.features.0.0.classifier.1.se.conv_reduce.conv_expand.stem.conv.conv_head.conv_"
    "pw.conv_pwl.bn3.conv3.head.fc\"0s64,3,7,7:float32 conv1.weight\",\"0u64:float32 bn1.weight\",\"1 "
    "bias\",\"1 running_mean\",\"1 running_var\",\"1r:int64 num_batches_tracked\",\"0s64,64,3,3:float32 l"
    "ayer1.0.conv1.weight\",\"2u64:float32 bn1.weight\",\"3 bias\",\"3 running_mean\",\"3 running_var\",\"3"
    "r:int64 num_batches_tracked\",\"2s128,64,1,1:float32 downsample.0.weight\",\"3u128:float32 1.wei"
    "ght\",\"4 bias\",\"4 running_mean\",\"4 running_var\",\"4r:int64 num_batches_tracked\",\"0s10,64:float"
    "32 linear.weight\",\"1u10:float32 bias\",\"0s1000,512:float32 fc.weight\",\"1u1000:float32 bias\"],"
    "\"ties\":{},\"checkpoint\":{\"bytes\":1,\"parameters\":1,\"architecture\":\"torchvision/timm/\",\"notes\":"
    "[\"Took the state dict under `state_dict`.\",\"Stripped the prefix `module.` from every name.\"]"
    "},\"checkpoint\":{\"bytes\":2,\"parameters\":2,\"architecture\":null,\"notes\":[]},\"recipe\":{\"n_compon"
    "ents\":1024,\"em_iterations\":20,\"log_sigma_weight\":0.1,\"noise\":0.35},\"seed\":0,\"versions\":{\"gbn"
    "n-compress\":\"0.1.0\",\"constriction\":\"0.5.0\",\"numpy\":\"2.4.\",\"safetensors\":\"0.8.0\",\"torch\":\"2.1"
    "4.1\"},\"target_ratio\":null,\"max_drop\":1.0,\"ratio_of\":\"parameters\",\"target_ratio\":10.0,\"max_dr"
    "op\":null,\"ratio_of\":\"artifact\",\"components_before_merging\":1024,\"damage\":{\"drop\":0.,\"agreeme"
    "nt\":0.9,\"logit_kl\":0.0,\"measured\":false,\"safe_ratio\":1},\"warnings\":[\"predicted accuracy drop"
    " of 3 points: without data this network is thought safe up to about 10x; evaluate the file b"
    "efore use, or ask for a smaller ratio\"],\"noise\":1.}},\"warnings\":[],\"noise\":0.";

span manifest_dictionary(void) { return span_of(TEXT, sizeof TEXT - 1); }
