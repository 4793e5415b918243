#pragma once

#include <string>

namespace tessera::testing {

/// The path of a fixture. Where the environment names the whole set in TESSERA_FIXTURES, it lies there;
/// else it is the project's own choice of cases under tests/data. `relative` is a path inside the set, such
/// as "images/goldens.json".
std::string fixture_path(const std::string& relative);

/// True when `relative` exists in the set in use: the project's own holds a choice of the cases.
bool has_fixture(const std::string& relative);

/// A folder of the running test's own, empty at first, removed when the program ends.
std::string scratch_dir();

}  // namespace tessera::testing
