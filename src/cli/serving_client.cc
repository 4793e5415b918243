#include "cli/serving_client.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "core/base64.h"

namespace tessera::cli {
namespace {

struct Address {
  std::string host, port = "80", path;
};

Result<Address> parse_url(const std::string& url) {
  if (url.rfind("http://", 0) != 0) return invalid_input("--url is " + url + "; expected http://host:port");
  std::string rest = url.substr(7);
  Address address;
  if (const size_t slash = rest.find('/'); slash != std::string::npos) {
    address.path = rest.substr(slash);
    rest.resize(slash);
  }
  while (!address.path.empty() && address.path.back() == '/') address.path.pop_back();
  if (address.path.size() >= 3 && address.path.compare(address.path.size() - 3, 3, "/v1") == 0)
    address.path.resize(address.path.size() - 3);
  if (const size_t colon = rest.rfind(':'); colon != std::string::npos) {
    address.port = rest.substr(colon + 1);
    rest.resize(colon);
  }
  address.host = rest;
  return address;
}

// A connected socket that closes itself.
class Connection {
 public:
  ~Connection() {
    if (fd_ >= 0) ::close(fd_);
  }
  Status open(const Address& address) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (const int code = ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &found); code != 0)
      return invalid_input("cannot find " + address.host + ": " + ::gai_strerror(code));
    for (addrinfo* at = found; at && fd_ < 0; at = at->ai_next) {
      fd_ = ::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
      if (fd_ >= 0 && ::connect(fd_, at->ai_addr, at->ai_addrlen) != 0) {
        ::close(fd_);
        fd_ = -1;
      }
    }
    ::freeaddrinfo(found);
    return fd_ >= 0 ? Status()
                    : unavailable("cannot connect to " + address.host + ":" + address.port + ": " + std::strerror(errno));
  }
  Status send(const std::string& data) {
    for (size_t done = 0; done < data.size();) {
      const ssize_t n = ::send(fd_, data.data() + done, data.size() - done, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return unavailable(std::string("the connection broke: ") + std::strerror(errno));
      done += static_cast<size_t>(n);
    }
    return {};
  }
  /// Appends what has arrived; false at the end.
  bool receive(std::string& buffer) {
    char chunk[16384];
    ssize_t n = 0;
    do n = ::recv(fd_, chunk, sizeof chunk, 0);
    while (n < 0 && errno == EINTR);
    if (n <= 0) return false;
    buffer.append(chunk, static_cast<size_t>(n));
    return true;
  }

 private:
  int fd_ = -1;
};

Json request_body(const Request& request, const std::string& model) {
  Json messages = Json::array();
  for (const Message& message : request.messages) {
    Json content = Json::array();
    for (const ContentPart& part : message.content) {
      Json item;
      if (part.image < 0) {
        item.set("type", "text");
        item.set("text", part.text);
      } else {
        Json url;
        url.set("url", "data:image/jpeg;base64," + encode_base64(request.images[static_cast<size_t>(part.image)].bytes));
        item.set("type", "image_url");
        item.set("image_url", std::move(url));
      }
      content.push_back(std::move(item));
    }
    Json turn;
    turn.set("role", message.role);
    turn.set("content", std::move(content));
    messages.push_back(std::move(turn));
  }
  Json body;
  body.set("model", model);
  body.set("messages", std::move(messages));
  body.set("max_tokens", request.max_new_tokens.value_or(128));
  body.set("ignore_eos", request.ignore_eos);
  body.set("stream", true);
  Json options;
  options.set("include_usage", true);
  body.set("stream_options", std::move(options));
  return body;
}

// Reads the events of one response and tells the listener.
class EventReader {
 public:
  explicit EventReader(Listener* listener) : listener_(listener) {}

  Status read(Connection& connection) {
    std::string buffer;
    size_t head_end = std::string::npos;
    while ((head_end = buffer.find("\r\n\r\n")) == std::string::npos)
      if (!connection.receive(buffer)) return unavailable("the server closed the connection without an answer");
    const std::string status_line = buffer.substr(0, buffer.find("\r\n"));
    if (status_line.find(" 200") == std::string::npos) {
      while (buffer.size() < 4096 && connection.receive(buffer)) {
      }
      return invalid_input("the server answered \"" + status_line + "\": " + buffer.substr(head_end + 4, 200));
    }
    buffer.erase(0, head_end + 4);
    do {
      // Chunk sizes stand on lines of their own between events; lines without "data:" are skipped, so they are, too.
      for (size_t end; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1))
        if (line(buffer.substr(0, end))) return {};
    } while (connection.receive(buffer));
    return unavailable("the stream broke before its end");
  }

 private:
  // True at the end of the stream.
  bool line(std::string text) {
    while (!text.empty() && text.back() == '\r') text.pop_back();
    if (text.rfind("data: ", 0) != 0) return false;
    if (text == "data: [DONE]") {
      finish();
      return true;
    }
    auto event = Json::parse(std::string_view(text).substr(6));
    if (!event.ok()) return false;
    if (const Json* usage = event->find("usage"); usage && usage->is_object()) note_usage(*usage);
    const Json* choices = event->find("choices");
    if (!choices || !choices->is_array() || choices->as_array().empty()) return false;
    const Json* delta = choices->as_array()[0].find("delta");
    const Json* content = delta ? delta->find("content") : nullptr;
    if (!content || !content->is_string() || content->as_string().empty()) return false;
    ++events_;
    listener_->on_delta({.index = 0, .text = content->as_string(), .token_ids = {0}, .logprobs = {}});
    return false;
  }

  void note_usage(const Json& usage) {
    const auto count = [](const Json* object, const char* key) {
      const Json* value = object && object->is_object() ? object->find(key) : nullptr;
      return value && value->fits_int64() ? value->as_int64() : 0;
    };
    prompt_.prompt_tokens = count(&usage, "prompt_tokens");
    completion_tokens_ = count(&usage, "completion_tokens");
    const Json* details = usage.find("prompt_tokens_details");
    prompt_.image_tokens = count(details, "image_tokens");  // ours alone; other servers leave it out
    cached_tokens_ = count(details, "cached_tokens");
  }

  void finish() {
    listener_->on_prompt(prompt_);
    // A server may put several tokens into one event: the count is then the usage's.
    const int64_t rest = completion_tokens_ - events_;
    if (rest > 0)
      listener_->on_delta({.index = 0, .text = {}, .token_ids = std::vector<int32_t>(static_cast<size_t>(rest)), .logprobs = {}});
    listener_->on_finish({.cached_tokens = cached_tokens_});
  }

  Listener* listener_;
  PromptInfo prompt_;
  int64_t completion_tokens_ = 0, cached_tokens_ = 0, events_ = 0;
};

Status exchange(const Address& address, const std::string& message, Listener* listener) {
  Connection connection;
  TESSERA_RETURN_IF_ERROR(connection.open(address));
  TESSERA_RETURN_IF_ERROR(connection.send(message));
  return EventReader(listener).read(connection);
}

}  // namespace

SendRequest make_http_sender(const std::string& url, const std::string& model, const std::string& api_key) {
  return [url, model, api_key](const Request& request, std::shared_ptr<Listener> listener) -> Status {
    TESSERA_ASSIGN_OR_RETURN(Address address, parse_url(url));
    const std::string body = request_body(request, model).dump();
    std::string message = "POST " + address.path + "/v1/chat/completions HTTP/1.1\r\nHost: " + address.host +
                          "\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " +
                          std::to_string(body.size()) + "\r\n";
    if (!api_key.empty()) message += "Authorization: Bearer " + api_key + "\r\n";
    message += "\r\n" + body;
    std::thread([address, message, listener] {
      if (Status status = exchange(address, message, listener.get()); !status.ok())
        listener->on_finish({.index = 0, .reason = FinishReason::kError, .status = status});
    }).detach();
    return {};
  };
}

}  // namespace tessera::cli
