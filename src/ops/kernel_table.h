#pragma once

namespace tessera {

class Stream;
struct NormArgs;
struct LinearArgs;
struct EpilogueArgs;
struct RopeAnglesArgs;
struct QkvToCacheArgs;
struct ProjectQkvArgs;
struct PagedAttentionArgs;
struct DecoderLayerArgs;
struct BeginStepArgs;
struct TileAttentionArgs;
struct PatchEmbedArgs;
struct PixelShuffleArgs;
struct EmbedArgs;
struct GatherRowsArgs;
struct ScatterRowsArgs;
struct CopyBlocksArgs;
struct MoeArgs;
struct SampleArgs;

/// A backend's kernels. The arguments have passed the checks of the operator's door (ops/<op>.cc). An empty slot means
/// "not on this device", which the door says with the operator's and the device's names; in place of an empty fusion the
/// door calls the operators that it consists of. Kernels are asynchronous
/// where the stream is; they throw DeviceError on failure.
struct KernelTable {
  const char* device = "";
  void (*norm)(Stream&, const NormArgs&) = nullptr;
  void (*linear)(Stream&, const LinearArgs&) = nullptr;
  void (*epilogue)(Stream&, const EpilogueArgs&) = nullptr;
  void (*rope_angles)(Stream&, const RopeAnglesArgs&) = nullptr;
  void (*qkv_to_cache)(Stream&, const QkvToCacheArgs&) = nullptr;
  void (*paged_attention)(Stream&, const PagedAttentionArgs&) = nullptr;
  void (*tile_attention)(Stream&, const TileAttentionArgs&) = nullptr;
  void (*patch_embed)(Stream&, const PatchEmbedArgs&) = nullptr;
  void (*pixel_shuffle)(Stream&, const PixelShuffleArgs&) = nullptr;
  void (*embed)(Stream&, const EmbedArgs&) = nullptr;
  void (*gather_rows)(Stream&, const GatherRowsArgs&) = nullptr;
  void (*scatter_rows)(Stream&, const ScatterRowsArgs&) = nullptr;
  void (*copy_blocks)(Stream&, const CopyBlocksArgs&) = nullptr;
  void (*moe)(Stream&, const MoeArgs&) = nullptr;
  void (*sample)(Stream&, const SampleArgs&) = nullptr;

  bool folded_norms = false;  ///< linear takes x_sums and out_sums

  // Fusions.
  void (*norm_linear)(Stream&, const LinearArgs&) = nullptr;  ///< a linear with an input norm
  void (*project_qkv)(Stream&, const ProjectQkvArgs&) = nullptr;
  void (*begin_step)(Stream&, const BeginStepArgs&) = nullptr;
  bool (*decoder_layer)(Stream&, const DecoderLayerArgs&) = nullptr;  ///< false: not this one
};

}  // namespace tessera
