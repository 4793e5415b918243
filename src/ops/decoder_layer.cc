#include "ops/decoder_layer.h"

#include "ops/door.h"

namespace tessera {

bool decoder_layer(const OpContext& ctx, const DecoderLayerArgs& args) {
  if (!ctx.kernels || !ctx.kernels->decoder_layer || ctx.rank.count > 1) return false;
  check(args.project);
  check(args.attention);
  for (const LinearArgs* product : {&args.o, &args.gate_up, &args.down}) check(*product);
  const void* const x = args.project.product.x.data;
  TESSERA_CHECK(args.o.residual.data == x && args.o.out.data == x && args.gate_up.x.data == x && args.down.residual.data == x && args.down.out.data == x,
                "[decoder_layer] the products do not share x");
  TESSERA_CHECK(args.attention.q.data == args.project.cache.qkv.data && args.o.x.data == args.attention.out.data && args.down.x.data == args.gate_up.out.data,
                "[decoder_layer] an operator does not take what the one ahead makes");
  return ctx.kernels->decoder_layer(*ctx.stream, args);
}

}  // namespace tessera
