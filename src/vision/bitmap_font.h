#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "vision/image.h"

namespace tessera {

using Rgb = std::array<uint8_t, 3>;

/// Size of text at scale 1, pixels: glyphs are 5 x 7 with one column between them.
inline constexpr int kGlyphHeight = 7;
int text_width(std::string_view text, int scale);

/// Draws one line of text, its top left corner at (x, y); what lies outside of the picture is left out. Knows
/// capitals, digits and a little punctuation; small letters are drawn as capitals, others as a space.
void draw_text(Image& image, int x, int y, int scale, std::string_view text, Rgb colour);

}  // namespace tessera
