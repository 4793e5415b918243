#include "server/media.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/support/fixtures.h"

namespace tessera::server {
namespace {
namespace fs = std::filesystem;

TEST(Media, KnowsPublicAddresses) {
  for (const char* address : {"8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::1"})
    EXPECT_TRUE(is_public_address(address)) << address;
  for (const char* address : {"127.0.0.1",
                              "10.1.2.3",
                              "172.16.0.1",
                              "172.31.255.255",
                              "192.168.1.1",
                              "169.254.169.254",
                              "100.64.0.1",
                              "0.0.0.0",
                              "224.0.0.1",
                              "255.255.255.255",
                              "198.18.0.1",
                              "192.0.2.1",
                              "::1",
                              "::",
                              "fe80::1",
                              "fc00::1",
                              "fd12::1",
                              "::ffff:127.0.0.1",
                              "::ffff:8.8.8.8",
                              "64:ff9b::7f00:1",
                              "2002:7f00:1::",
                              "2001::1",
                              "2001:db8::1",
                              "ff02::1",
                              "3fff::1",
                              "nonsense",
                              ""})
    EXPECT_FALSE(is_public_address(address)) << address;
}

TEST(Media, TakesUrlsApart) {
  auto url = parse_media_url("HTTPS://Example.COM:8443/a/b?c=d#e");
  ASSERT_TRUE(url.ok());
  EXPECT_TRUE(url->https);
  EXPECT_EQ(url->host, "example.com");
  EXPECT_EQ(url->port, 8443);
  EXPECT_EQ(url->target, "/a/b?c=d");
  EXPECT_EQ(parse_media_url("http://h?x")->target, "/?x");
  for (const char* text :
       {"ftp://h/", "http://", "http:///x", "http://u@h/", "http://u:p@h/", "http://h:0/", "http://h:99999/",
        "http://h:8x/", "http://h\\@evil/", "http://h/\r\nX: y", "http://h /", "http://[::1", "h/x"})
    EXPECT_FALSE(parse_media_url(text).ok()) << text;
}

TEST(Media, DomainsAreExact) {
  auto allowed = [](const char* url, std::vector<std::string> domains) {
    return domain_allowed(parse_media_url(url).value(), domains);
  };
  EXPECT_TRUE(allowed("https://a.org/x", {"a.org"}));
  EXPECT_FALSE(allowed("https://a.org.evil.net/x", {"a.org"}));
  EXPECT_FALSE(allowed("https://evila.org/x", {"a.org"}));
  EXPECT_FALSE(allowed("https://sub.a.org/x", {"a.org"}));
  EXPECT_TRUE(allowed("https://sub.a.org/x", {"*.a.org"}));
  EXPECT_FALSE(allowed("https://evila.org/x", {"*.a.org"}));
  EXPECT_FALSE(allowed("http://a.org:22/x", {"a.org"}));
  EXPECT_TRUE(allowed("http://a.org:8080/x", {"a.org:8080"}));
}

TEST(Media, NothingIsAllowedByDefault) {
  for (const char* url :
       {"http://example.org/a.png", "https://example.org/a.png", "file:///etc/hostname", "gopher://x/", "x"})
    EXPECT_FALSE(load_media(url, {}).ok()) << url;
}

TEST(Media, LocalFilesStayBelowTheirDirectory) {
  const fs::path root = testing::scratch_dir();
  fs::create_directories(root / "in");
  std::ofstream(root / "in/a.png") << "picture";
  std::ofstream(root / "secret") << "secret";
  fs::create_symlink(root / "secret", root / "in/link");
  fs::create_symlink(root, root / "in/up");
  MediaPolicy policy{.local_path = (root / "in").string()};
  ASSERT_TRUE(prepare_media_policy(&policy).ok());
  const std::string base = "file://" + policy.local_path;
  EXPECT_EQ(load_media(base + "/a.png", policy).value(), "picture");
  EXPECT_EQ(load_media(base + "/%61.png", policy).value(), "picture");
  for (const char* name :
       {"/link", "/up/secret", "/../secret", "/%2e%2e/secret", "", "/", "/absent", "/a.png%00", "/a.png%"})
    EXPECT_FALSE(load_media(base + name, policy).ok()) << name;
}

}  // namespace
}  // namespace tessera::server
