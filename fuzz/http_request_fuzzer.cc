// A request's body, from bytes to tessera::Request, at each endpoint; and every piece of text that comes back
// as JSON. The first byte chooses the endpoint.
#include <cstdint>
#include <string_view>

#include "core/check.h"
#include "core/json.h"
#include "server/json_text.h"
#include "server/media.h"
#include "server/openai_types.h"

using namespace tessera;          // NOLINT: a program of one page
using namespace tessera::server;  // NOLINT

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const ServedModel model{"demo", "models/demo"};
  RequestBounds bounds;
  bounds.lenient = (data[0] & 8) != 0;
  ApiError error;
  switch (data[0] & 7) {
    case 0:
      parse_completion(body, model, bounds, &error);
      break;
    case 1:
      parse_tokenize(body, model, bounds, &error);
      break;
    case 2:
      parse_detokenize(body, model, bounds, &error);
      break;
    case 3:
      (void)parse_media_url(body);
      break;
    case 4: {
      std::string text;
      append_json_string(text, body);
      TESSERA_CHECK(Json::parse(text).ok(), "a string that is no JSON");
      break;
    }
    default: {
      const ParsedRequest parsed = parse_chat_completion(body, model, bounds, &error);
      if (error.failed()) break;
      TESSERA_CHECK(!parsed.request.messages.empty() && parsed.request.n >= 1 && parsed.request.n <= 16,
                    "out of bounds");
      for (const Message& message : parsed.request.messages)
        for (const ContentPart& part : message.content)
          TESSERA_CHECK(part.image < static_cast<int>(parsed.request.images.size()),
                        "a picture that is not there");
    }
  }
  if (error.failed()) TESSERA_CHECK(Json::parse(error_body(error)).ok(), "an error that is no JSON");
  return 0;
}
