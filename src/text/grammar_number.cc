#include "text/grammar_number.h"

#include <algorithm>
#include <charconv>

namespace tessera {
namespace {

constexpr int kFractionDigits = 9;

__int128 power_of_ten(int exponent) {
  __int128 value = 1;
  while (exponent-- > 0) value *= 10;
  return value;
}

__int128 round_up(__int128 value, __int128 unit) {
  const __int128 rest = value % unit;
  if (rest == 0) return value;
  return value - rest + (rest > 0 ? unit : 0);
}

// A multiple of `unit` in [low, high] and in [range_low, range_high].
bool meets(__int128 low, __int128 high, __int128 unit, __int128 range_low, __int128 range_high) {
  return round_up(std::max(low, range_low), unit) <= std::min(high, range_high);
}

// The bounds of the magnitude for the text's sign.
std::pair<__int128, __int128> magnitude_bounds(const NumberRange& range, bool negative) {
  if (negative) return {std::max<__int128>(-range.high, 0), -range.low};
  return {std::max<__int128>(range.low, 0), range.high};
}

int fraction_room(const NumberRange& range, int integer_digits) {
  return range.integer ? 0 : std::clamp(range.digits - integer_digits, 0, kFractionDigits);
}

// Whether digits (and a fraction) can still be added so that the number lies in the range.
bool can_become_number(const NumberRange& range, const NumberText& text) {
  const auto [low, high] = magnitude_bounds(range, text.negative);
  if (low > high) return false;
  const __int128 one = power_of_ten(kFractionDigits);
  switch (text.phase) {
    case NumberText::kStart:
      return true;
    case NumberText::kMinus:
      return meets(low, high, range.integer ? one : 1, 0, high);
    case NumberText::kZero:
    case NumberText::kInteger:
      for (int more = 0; more + text.integer_digits <= (text.phase == NumberText::kZero ? 1 : range.digits); ++more) {
        const __int128 scale = power_of_ten(more), first = text.magnitude * scale;
        const int room = fraction_room(range, text.integer_digits + more);
        const __int128 unit = power_of_ten(kFractionDigits - room);
        if (meets(first, first + one * scale - unit, unit, low, high)) return true;
      }
      return false;
    case NumberText::kPoint:
    case NumberText::kFraction: {
      const int room = fraction_room(range, text.integer_digits);
      const __int128 unit = power_of_ten(kFractionDigits - room);
      const __int128 span = power_of_ten(kFractionDigits - text.fraction_digits);
      return room >= std::max<int>(1, text.fraction_digits) &&
             meets(text.magnitude, text.magnitude + span - unit, unit, low, high);
    }
    default:
      return true;  // exponents: only without bounds
  }
}

// The text with one more byte by JSON's grammar alone.
std::optional<NumberText> with_byte(const NumberRange& range, unsigned char byte, NumberText text) {
  using P = NumberText::Phase;
  const bool digit = byte >= '0' && byte <= '9';
  const int value = byte - '0';
  switch (text.phase) {
    case P::kStart:
      if (byte == '-') {
        text.negative = true;
        text.phase = P::kMinus;
        return text;
      }
      [[fallthrough]];
    case P::kMinus:
      if (!digit) return std::nullopt;
      text.phase = value == 0 ? P::kZero : P::kInteger;
      text.integer_digits = 1;
      text.magnitude = value * power_of_ten(kFractionDigits);
      return text;
    case P::kZero:
    case P::kInteger:
      if (digit && text.phase == P::kInteger && text.integer_digits < range.digits) {
        text.magnitude = text.magnitude * 10 + value * power_of_ten(kFractionDigits);
        ++text.integer_digits;
        return text;
      }
      if (byte == '.' && !range.integer) {
        text.phase = P::kPoint;
        return text;
      }
      break;
    case P::kPoint:
    case P::kFraction:
      if (digit && text.fraction_digits < fraction_room(range, text.integer_digits)) {
        ++text.fraction_digits;
        text.magnitude += value * power_of_ten(kFractionDigits - text.fraction_digits);
        text.phase = P::kFraction;
        return text;
      }
      if (text.phase == P::kPoint) return std::nullopt;
      break;
    case P::kExponent:
      if (byte == '+' || byte == '-') {
        text.phase = P::kExponentSign;
        return text;
      }
      [[fallthrough]];
    case P::kExponentSign:
    case P::kExponentDigits:
      if (!digit || text.exponent_digits >= 2) return std::nullopt;
      ++text.exponent_digits;
      text.phase = P::kExponentDigits;
      return text;
  }
  if ((byte == 'e' || byte == 'E') && !range.integer && !range.bounded) {
    text.phase = P::kExponent;
    return text;
  }
  return std::nullopt;
}

}  // namespace

NumberRange full_number_range(bool integer) {
  NumberRange range;
  range.integer = integer;
  range.digits = integer ? 18 : 15;
  range.high = power_of_ten(range.digits + kFractionDigits) - power_of_ten(kFractionDigits);
  range.low = -range.high;
  return range;
}

void bound_number(NumberRange* range, double bound, bool is_minimum, bool exclusive) {
  range->bounded = true;
  // Shortest decimal digits: what the schema's author wrote, not the double's binary expansion.
  char text[400];
  const double clamped = std::clamp(bound, -1e19, 1e19);
  const auto end = std::to_chars(text, text + sizeof text, clamped, std::chars_format::fixed).ptr;
  const bool negative = text[0] == '-';
  __int128 value = 0;
  int fraction = -1;
  bool more = false;  // digits behind the ninth
  for (const char* at = text + negative; at != end; ++at) {
    if (*at == '.') {
      fraction = 0;
    } else if (fraction < kFractionDigits) {
      value = value * 10 + (*at - '0');
      fraction += fraction >= 0;
    } else {
      more = more || *at != '0';
    }
  }
  value *= power_of_ten(kFractionDigits - std::max(fraction, 0));
  if (negative) value = -value;
  if (more) {  // between two representable numbers: the one inside, and exclusive has no meaning
    exclusive = false;
    if (is_minimum && !negative) ++value;
    if (!is_minimum && negative) --value;
  }
  if (exclusive) value += is_minimum ? 1 : -1;
  const __int128 one = power_of_ten(kFractionDigits);
  if (range->integer) value = is_minimum ? round_up(value, one) : -round_up(-value, one);
  if (is_minimum)
    range->low = std::max(range->low, value);
  else
    range->high = std::min(range->high, value);
}

bool is_empty(const NumberRange& range) {
  for (const char* start : {"-", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}) {
    NumberText text;
    if (push_number_byte(range, static_cast<unsigned char>(start[0]), &text)) return false;
  }
  return true;
}

bool push_number_byte(const NumberRange& range, unsigned char byte, NumberText* text) {
  const auto next = with_byte(range, byte, *text);
  if (!next || !can_become_number(range, *next)) return false;
  *text = *next;
  return true;
}

bool is_whole_number(const NumberRange& range, const NumberText& text) {
  using P = NumberText::Phase;
  if (text.phase == P::kExponentDigits) return true;
  if (text.phase != P::kZero && text.phase != P::kInteger && text.phase != P::kFraction) return false;
  const __int128 value = text.negative ? -text.magnitude : text.magnitude;
  return value >= range.low && value <= range.high;
}

}  // namespace tessera
