#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/arg_parser.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/tile_sizes.h"
#include "core/file.h"
#include "core/json.h"
#include "vision/decode.h"
#include "vision/png_writer.h"
#include "vision/tile.h"
#include "vision/tile_sheet.h"

namespace tessera::cli {
namespace {
namespace fs = std::filesystem;

struct TileFlags {
  std::string image;
  std::optional<std::string> sizes, out, sheet;
  std::optional<int64_t> image_size, max_patch, min_patch, max_pixels, max_side, max_bytes;
  std::string exif_orientation = "ignore";
  bool json = false;

  // True when an option was given that needs a picture.
  bool any_for_a_picture() const {
    return out || sheet || image_size || max_patch || min_patch || max_pixels || max_side || max_bytes ||
           json || exif_orientation != "ignore";
  }
};

void add_flags(ArgParser& parser, TileFlags& flags) {
  parser.positional("IMAGE", &flags.image, "the picture: JPEG, PNG, WebP, GIF, BMP or PNM",
                    /*required=*/false);
  parser.flag("--json", &flags.json, "print one JSON object: width, height, grid, tiles, files");
  parser.option("--out", &flags.out, "write each tile into this directory as an 8-bit RGB PNG");
  parser.option("--sheet", &flags.sheet, "write one PNG that shows the cuts over the picture");
  parser.option("--sizes", &flags.sizes,
                "no picture: for each line 'width height image_size min_num max_num use_thumbnail' of this "
                "tab-separated file, print it with 'columns rows tiles' appended");
  parser.group("Cutting");
  parser.option("--image-size", &flags.image_size, 1, 2048, "side of a tile, pixels; default 448");
  parser.option("--max-dynamic-patch", &flags.max_patch, 1, 128,
                "tiles at most, thumbnail not counted; default 12");
  parser.option("--min-dynamic-patch", &flags.min_patch, 1, 128,
                "tiles at least, thumbnail not counted; default 1");
  parser.choice("--exif-orientation", &flags.exif_orientation, {"ignore", "apply"},
                "ignore is what the reference does; apply turns the picture first");
  parser.group("Limits");
  parser.option("--max-image-pixels", &flags.max_pixels, 1, int64_t{1} << 40,
                "pixels of a picture at most; default 178956970");
  parser.option("--max-image-side", &flags.max_side, 1, 1 << 24,
                "pixels along a side at most; default 1048576");
  parser.option("--max-image-bytes", &flags.max_bytes, 1, int64_t{1} << 40,
                "bytes of a picture file at most; default 268435456");
}

Result<TilingOptions> tiling_options(const TileFlags& flags) {
  TilingOptions options;
  if (flags.image_size) options.image_size = static_cast<int>(*flags.image_size);
  if (flags.max_patch) options.max_tiles = static_cast<int>(*flags.max_patch);
  if (flags.min_patch) options.min_tiles = static_cast<int>(*flags.min_patch);
  if (options.min_tiles > options.max_tiles)
    return invalid_input("--min-dynamic-patch is " + std::to_string(options.min_tiles) +
                         ", above --max-dynamic-patch, " + std::to_string(options.max_tiles));
  return options;
}

Result<Image> load_picture(const TileFlags& flags) {
  DecodeLimits limits;
  if (flags.max_pixels) limits.max_pixels = *flags.max_pixels;
  if (flags.max_side) limits.max_side = *flags.max_side;
  if (flags.max_bytes) limits.max_bytes = static_cast<size_t>(*flags.max_bytes);
  TESSERA_ASSIGN_OR_RETURN(const std::string file, read_file(flags.image, limits.max_bytes));
  auto image =
      decode_image(std::as_bytes(std::span(file)), limits,
                   flags.exif_orientation == "apply" ? ExifOrientation::kApply : ExifOrientation::kIgnore);
  if (!image.ok()) return image.status().with_context(flags.image);
  return image;
}

std::string tile_path(const std::string& directory, const TiledImage& tiled, int index) {
  char name[64];
  const bool thumbnail = tiled.grid.has_thumbnail() && index == tiled.grid.tiles - 1;
  std::snprintf(name, sizeof name, "tile-%0*d%s.png", tiled.grid.tiles > 99 ? 3 : 2, index + 1,
                thumbnail ? "-thumbnail" : "");
  return (fs::path(directory) / name).string();
}

// Files of this run; those already there are removed when a later one can't be written.
class OutputFiles {
 public:
  ~OutputFiles() {
    if (!kept_)
      for (const std::string& path : paths_) std::remove(path.c_str());
  }
  Status write(const std::string& path, const std::string& bytes) {
    TESSERA_RETURN_IF_ERROR(write_file(path, bytes));
    paths_.push_back(path);
    return {};
  }
  void keep() { kept_ = true; }

 private:
  std::vector<std::string> paths_;
  bool kept_ = false;
};

Result<std::vector<std::string>> write_outputs(const TileFlags& flags, const Image& image,
                                               const TiledImage& tiled) {
  std::vector<std::string> tiles;
  OutputFiles files;
  if (flags.out) {
    std::error_code error;
    fs::create_directories(*flags.out, error);
    if (error) return invalid_input("cannot make directory " + *flags.out + ": " + error.message());
    for (int t = 0; t < tiled.grid.tiles; ++t) {
      tiles.push_back(tile_path(*flags.out, tiled, t));
      TESSERA_RETURN_IF_ERROR(files.write(tiles.back(), encode_png(interleaved_tile(tiled, t))));
    }
  }
  if (flags.sheet)
    TESSERA_RETURN_IF_ERROR(files.write(*flags.sheet, encode_png(draw_tile_sheet(image, tiled))));
  files.keep();
  return tiles;
}

std::string as_json(const TiledImage& tiled, const std::vector<std::string>& files) {
  Json grid = Json::array(), paths = Json::array(), out = Json::object();
  grid.push_back(tiled.grid.columns);
  grid.push_back(tiled.grid.rows);
  for (const std::string& path : files) paths.push_back(path);
  out.set("width", tiled.width);
  out.set("height", tiled.height);
  out.set("grid", std::move(grid));
  out.set("tiles", tiled.grid.tiles);
  out.set("files", std::move(paths));
  return out.dump() + "\n";
}

std::string as_text(const TileFlags& flags, const TiledImage& tiled, const std::vector<std::string>& files) {
  const int cost = tokens_per_tile(tiled.image_size);
  std::string text = flags.image + ": " + std::to_string(tiled.width) + " x " + std::to_string(tiled.height) +
                     " pixels\ngrid    " + std::to_string(tiled.grid.columns) + " x " +
                     std::to_string(tiled.grid.rows) + "\ntiles   " + std::to_string(tiled.grid.tiles) +
                     (tiled.grid.has_thumbnail() ? " (the thumbnail is the last)" : "");
  if (cost > 0)
    text += "\ntokens  " + std::to_string(cost * tiled.grid.tiles) + " (" + std::to_string(cost) + " a tile)";
  for (const std::string& path : files) text += "\n" + path;
  if (flags.sheet) text += "\n" + *flags.sheet;
  return text + "\n";
}

Status run_sizes(const TileFlags& flags) {
  if (!flags.image.empty() || flags.any_for_a_picture())
    return invalid_input(
        "--sizes stands alone: its lines say everything; leave out IMAGE and the other options");
  constexpr size_t kMaxBytes = size_t{256} << 20;
  TESSERA_ASSIGN_OR_RETURN(const std::string text, read_file(*flags.sizes, kMaxBytes));
  const auto table = tile_sizes_table(text);
  if (!table.ok()) return table.status().with_context(*flags.sizes);
  std::fputs(table->c_str(), stdout);
  return {};
}

Status run_picture(const TileFlags& flags) {
  if (flags.image.empty()) return invalid_input("nothing to do: name a picture, or a table with --sizes");
  TESSERA_ASSIGN_OR_RETURN(const TilingOptions options, tiling_options(flags));
  TESSERA_ASSIGN_OR_RETURN(const Image image, load_picture(flags));
  auto tiled = cut_tiles(image, options);
  if (!tiled.ok()) return tiled.status().with_context(flags.image);
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> files, write_outputs(flags, image, *tiled));
  std::fputs((flags.json ? as_json(*tiled, files) : as_text(flags, *tiled, files)).c_str(), stdout);
  return {};
}

}  // namespace

int tile_command(std::span<const std::string> args) {
  TileFlags flags;
  ArgParser parser("tessera tile", "Shows and writes the tiles that the model would see.",
                   "Example: tessera tile photo.jpg --out tiles --sheet sheet.png --json");
  add_flags(parser, flags);
  if (auto code = parser.parse(args)) return *code;
  const Status status = flags.sizes ? run_sizes(flags) : run_picture(flags);
  return status.ok() ? 0 : fail("tile", status);
}

}  // namespace tessera::cli
