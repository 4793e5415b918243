#include <cstdio>

#include "backends/registry.h"
#include "cli/arg_parser.h"
#include "cli/commands.h"
#include "cli/device_spec.h"
#include "cli/engine_flags.h"
#include "cli/plan_report.h"
#include "models/checkpoint.h"
#include "runtime/memory_plan.h"

namespace tessera::cli {
namespace {

constexpr const char* kExamples =
    "examples:\n"
    "  tessera plan InternVL2-8B --devices 4x24GiB --tp 4\n"
    "  tessera plan InternVL3-38B --devices 4x40GiB --layer-split --no-peer-access\n"
    "  tessera plan demo --devices cpu:4GiB --json\n"
    "A run's whole command line can be planned: what moves no memory (--isa, --max-decode-wait, --no-prefix-cache,\n"
    "--min-dynamic-patch, --exif-orientation, --max-image-*) is checked and changes nothing here.\n"
    "exit code: 0 fits, 3 does not fit";

struct PlanOptions {
  EngineFlags flags;
  std::string devices = "auto";
  std::string vision = "first";
  bool layer_split = false;
  bool no_peer_access = false;
  bool json = false;
};

Result<PlanLayout> layout_of(const PlanOptions& options, const std::vector<DeviceLimits>& devices) {
  if (options.layer_split && options.flags.options.tp > 1)
    return invalid_input("--layer-split and --tp " + std::to_string(options.flags.options.tp) +
                         " exclude each other; give one");
  PlanLayout layout;
  layout.layer_split = options.layer_split;
  layout.vision = options.vision == "split"  ? VisionPlacement::kSplit
                  : options.vision == "each" ? VisionPlacement::kEach
                                             : VisionPlacement::kFirst;
  layout.peer_access = !options.no_peer_access;
  for (const DeviceLimits& limits : devices) layout.peer_access = layout.peer_access && limits.peer_access;
  return layout;
}

Result<std::vector<DeviceLimits>> chosen_devices(const PlanOptions& options) {
  const EngineOptions& engine = options.flags.options;
  const std::string given = options.devices == "auto"      ? ""
                            : !engine.device_limits.empty() ? "--device-limits " + engine.device_limits
                            : engine.device != "auto"       ? "--device " + engine.device
                                                            : "";
  if (!given.empty()) return invalid_input(given + " and --devices " + options.devices + " exclude each other; give one");
  if (!engine.device_limits.empty()) return parse_devices(engine.device_limits);
  return options.devices == "auto" ? present_devices(engine.device) : parse_devices(options.devices);
}

// The devices to plan for, with the imposed limits on each.
Result<std::vector<DeviceLimits>> described_devices(const PlanOptions& options) {
  const EngineOptions& engine = options.flags.options;
  TESSERA_ASSIGN_OR_RETURN(std::vector<DeviceLimits> devices, chosen_devices(options));
  const bool cpu = devices.front().kind == "cpu";
  if (!cpu && (engine.threads > 0 || engine.isa != "auto"))
    return invalid_input("--threads and --isa are for computing on the CPU, but the plan is for GPUs; leave them out");
  for (DeviceLimits& limits : devices) {
    if (engine.threads > 0) limits.multiprocessors = engine.threads;
    TESSERA_RETURN_IF_ERROR(impose_limits(limits, engine.limits));
  }
  return devices;
}

Result<MemoryPlan> make_plan(const Checkpoint& checkpoint, const PlanOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(std::vector<DeviceLimits> limits, described_devices(options));
  TESSERA_ASSIGN_OR_RETURN(PlanLayout layout, layout_of(options, limits));
  std::vector<std::unique_ptr<Sizing>> sizings;
  std::vector<PlanDevice> devices;
  for (const DeviceLimits& device : limits) {
    TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Sizing> sizing, open_sizing(device));
    devices.push_back({device, sizing.get()});
    sizings.push_back(std::move(sizing));
  }
  return plan_memory(checkpoint, devices, options.flags.options, layout);
}

int print_plan(const MemoryPlan& plan, const PlanOptions& options, const std::string& model) {
  const std::string text = options.json ? plan_json(plan).dump(2) + "\n"
                                        : plan_table(plan, model, options.flags.options.cache_max_entry_count);
  std::fputs(text.c_str(), stdout);
  return plan.fits ? 0 : 3;
}

}  // namespace

int plan_command(std::span<const std::string> args) {
  ArgParser parser("tessera plan", "Prints what each device will hold, before anything is loaded.", kExamples);
  PlanOptions options;
  parser.positional("MODEL", &options.flags.options.model, "directory, cached repository, demo, or a released model's name");
  parser.group("Plan");
  parser.option("--devices", &options.devices,
                "4x24GiB, cpu:24GiB, 4xrtx3090, several joined by commas, or auto (what is there)");
  parser.flag("--layer-split", &options.layer_split, "devices hold ranges of layers instead of shares of each");
  parser.choice("--vision-placement", &options.vision, {"first", "split", "each"},
                "the vision tower: whole on the first device, split like the language model, or whole on each");
  parser.flag("--no-peer-access", &options.no_peer_access, "devices can't read each other's memory");
  parser.flag("--json", &options.json, "print one JSON object");
  options.flags.add_to(parser);
  if (auto code = parser.parse(args)) return *code;
  if (Status status = options.flags.finish(); !status.ok()) return fail("plan", status);
  auto checkpoint = Checkpoint::open(options.flags.options.model, {.allow_catalogue = true});
  if (!checkpoint.ok()) return fail("plan", checkpoint.status());
  auto plan = make_plan(*checkpoint, options);
  if (!plan.ok()) return fail("plan", plan.status());
  return print_plan(*plan, options, checkpoint->name());
}

}  // namespace tessera::cli
