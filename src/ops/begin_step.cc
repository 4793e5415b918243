#include "ops/begin_step.h"

#include "ops/door.h"

namespace tessera {

void begin_step(const OpContext& ctx, const BeginStepArgs& args) {
  const int64_t tokens = args.embed.ids.elements();
  TESSERA_CHECK(args.angles.positions.elements() == tokens, "[begin_step] angles are of other tokens");
  if (args.prepares) args.prepares->parts = 0;
  if (!ctx.kernels || !ctx.kernels->begin_step) {
    embed(ctx, args.embed);
    rope_angles(ctx, args.angles);
    return;
  }
  check(args.embed);
  check(args.angles);
  if (args.prepares) check_prepared("begin_step", *args.prepares, args.embed.out);
  if (tokens == 0) return;
  kernel_of("begin_step", ctx, &KernelTable::begin_step)(*ctx.stream, args);
}

}  // namespace tessera
