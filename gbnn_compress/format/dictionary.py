"""The preset dictionary for the compression of manifests, part of the format (docs/format.md).

It holds common text of manifests. The most common text comes last, where references to it are cheapest.
"""

DICTIONARY = (
    b"bfloat16.float16.float64.embeddings.word_embeddings.position_embeddings.token_type_embeddings.LayerNorm"
    b"encoder.layer.0.attention.self.query.key.value.attention.output.dense.intermediate.dense.output.dense.pooler."
    b"encoder.layers.encoder_layer_0.self_attention.in_proj_weight.out_proj.linear_1.linear_2.ln_1.ln_2.mlp.0.mlp.3"
    b"cls_token.pos_embed.patch_embed.proj.blocks.0.norm1.attn.qkv.attn.proj.norm2.mlp.fc1.mlp.fc2.head.gamma"
    b"stages.0.downsample.1.block.0.conv_dw.layer_scale.features.0.0.classifier.1.se.conv_reduce.conv_expand."
    b"stem.conv.conv_head.conv_pw.conv_pwl.bn3.conv3.head.fc"
    b'"0s64,3,7,7:float32 conv1.weight","0u64:float32 bn1.weight","1 bias","1 running_mean","1 running_var",'
    b'"1r:int64 num_batches_tracked","0s64,64,3,3:float32 layer1.0.conv1.weight","2u64:float32 bn1.weight","3 bias",'
    b'"3 running_mean","3 running_var","3r:int64 num_batches_tracked","2s128,64,1,1:float32 downsample.0.weight",'
    b'"3u128:float32 1.weight","4 bias","4 running_mean","4 running_var","4r:int64 num_batches_tracked",'
    b'"0s10,64:float32 linear.weight","1u10:float32 bias","0s1000,512:float32 fc.weight","1u1000:float32 bias"],'
    b'"ties":{},"checkpoint":{"bytes":1,"parameters":1,"architecture":"torchvision/timm/","notes":["'
    b'Took the state dict under `state_dict`.","Stripped the prefix `module.` from every name."]},'
    b'"checkpoint":{"bytes":2,"parameters":2,"architecture":null,"notes":[]},"recipe":{"n_components":1024,'
    b'"em_iterations":20,"log_sigma_weight":0.1,"noise":0.35},"seed":0,"versions":{"gbnn-compress":"0.1.0",'
    b'"constriction":"0.5.0","numpy":"2.4.","safetensors":"0.8.0","torch":"2.14.1"},"target_ratio":null,"max_drop":1.0,'
    b'"ratio_of":"parameters","target_ratio":10.0,"max_drop":null,"ratio_of":"artifact","components_before_merging":1024,'
    b'"damage":{"drop":0.,"agreement":0.9,"logit_kl":0.0,"measured":false,"safe_ratio":1},'
    b'"warnings":["predicted accuracy drop of 3 points: without data this network is thought safe up to about 10x;'
    b' evaluate the file before use, or ask for a smaller ratio"],"noise":1.}},"warnings":[],"noise":0.'
)
