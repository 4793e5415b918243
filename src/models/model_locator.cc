#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "core/file.h"
#include "models/catalogue.h"
#include "models/checkpoint.h"

namespace tessera {
namespace fs = std::filesystem;
namespace {

bool folder_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

// The demo model lies beside the program: in the source tree above build/, or where the package installs it.
Result<std::string> find_demo() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return internal_error("cannot find the program's own folder: " + error.message());
  const fs::path folder = program.parent_path();
  for (const char* place : {"models/demo", "../models/demo", "../share/tessera/models/demo"})
    if (folder_exists(folder / place)) return (folder / place).lexically_normal().string();
  return invalid_input("the demo model is not beside the program (" +
                       (folder / "../share/tessera/models/demo").lexically_normal().string() +
                       "); install the package whole or run the build inside its source tree");
}

std::string from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// As huggingface_hub resolves it.
fs::path hub_cache() {
  if (const std::string cache = from_environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const std::string home = from_environment("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  fs::path base = from_environment("XDG_CACHE_HOME");
  if (base.empty()) base = fs::path(from_environment("HOME")) / ".cache";
  return base / "huggingface" / "hub";
}

bool is_repository_name(const std::string& model) {
  const auto allowed = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.' || c == '/'; };
  const size_t slash = model.find('/');
  return slash != std::string::npos && slash > 0 && slash + 1 < model.size() &&
         model.find('/', slash + 1) == std::string::npos && model.find("..") == std::string::npos &&
         std::all_of(model.begin(), model.end(), allowed) && model[0] != '.';
}

// The snapshot that refs/main names; without refs (a cache that was copied by hand) the only one there is.
Result<std::string> find_snapshot(const fs::path& repository, const std::string& model) {
  auto revision = read_file((repository / "refs/main").string(), 256);
  if (revision.ok()) {
    std::string name = *revision;
    while (!name.empty() && (name.back() == '\n' || name.back() == ' ')) name.pop_back();
    const fs::path snapshot = repository / "snapshots" / name;
    if (!name.empty() && name.find('/') == std::string::npos && folder_exists(snapshot)) return snapshot.string();
    return invalid_input(model + ": " + (repository / "refs/main").string() + " names the snapshot " +
                         name.substr(0, 80) + ", which is not in the cache; download the model again");
  }
  std::vector<std::string> snapshots;
  std::error_code ignored;
  for (const auto& item : fs::directory_iterator(repository / "snapshots", ignored))
    if (item.is_directory(ignored)) snapshots.push_back(item.path().string());
  if (snapshots.size() == 1) return snapshots.front();
  return invalid_input(model + ": " + repository.string() + " has " + std::to_string(snapshots.size()) +
                       " snapshots and no refs/main that chooses one; give the snapshot's directory");
}

Status not_found(const std::string& model, const LocateOptions& options) {
  std::string text = "model " + model + " is no directory";
  if (is_repository_name(model)) text += " and not in the Hugging Face cache " + hub_cache().string();
  if (options.allow_catalogue) {
    const std::string nearest = nearest_release(model);
    text += ", and no release of that name is known";
    if (!nearest.empty()) text += " (did you mean " + nearest + "?)";
  } else if (find_release(model)) {
    text += "; the bare name of a release is enough for plan, doctor and bench only";
  }
  return invalid_input(text + "; give a checkpoint directory, or demo");
}

}  // namespace

Result<ModelLocation> locate_model(const std::string& model, const LocateOptions& options) {
  if (model.empty()) return invalid_input("the model's name is empty; give a checkpoint directory, or demo");
  if (model == "demo") {
    TESSERA_ASSIGN_OR_RETURN(std::string directory, find_demo());
    return ModelLocation{.directory = std::move(directory)};
  }
  if (folder_exists(model)) return ModelLocation{.directory = model};
  std::error_code error;
  if (fs::exists(model, error)) return invalid_input("model " + model + " is a file; give the checkpoint's directory");
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
    return invalid_input("cannot open model " + model + ": " + error.message());
  if (is_repository_name(model)) {
    std::string folder = "models--" + model;
    folder.replace(folder.find('/'), 1, "--");
    if (folder_exists(hub_cache() / folder)) {
      TESSERA_ASSIGN_OR_RETURN(std::string directory, find_snapshot(hub_cache() / folder, model));
      return ModelLocation{.directory = std::move(directory)};
    }
  }
  if (options.allow_catalogue) {
    if (const Release* release = find_release(model)) {
      if (!release->unsupported.empty())
        return invalid_input(std::string(release->name) + " is not supported: " + std::string(release->unsupported));
      return ModelLocation{.catalogue_name = std::string(release->name)};
    }
  }
  return not_found(model, options);
}

}  // namespace tessera
