package amqtt_test

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates/brokertest"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// Why aMQTT's own plugins are not used: what they let through on the broker. Its password
// file does read our verifiers of Argon2id.
func TestOwnPluginsAreWider(t *testing.T) {
	const config = `
listeners: {default: {type: tcp, bind: "127.0.0.1:%d"}}
plugins:
  amqtt.plugins.authentication.FileAuthPlugin: {password_file: "%s"}
  amqtt.plugins.topic_checking.TopicAccessControlListPlugin:
    publish_acl: {dev-1: ["a/x"], dev-2: ["#"]}
    acl: {dev-1: ["a/+"], dev-2: ["#", "b/#"]}
`
	dir := t.TempDir()
	var passwords []byte
	for _, id := range []string{"dev-1", "dev-2"} {
		v := targettest.Verifiers(t, id, "secret of "+id)
		i := slices.IndexFunc(v, func(v inventory.Verifier) bool { return v.Scheme == inventory.Argon2id })
		passwords = fmt.Appendf(passwords, "%s:%s\n", id, v[i].Hash)
	}
	port := brokertest.Ports(t, 1)[0]
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for name, text := range map[string]string{"passwd": string(passwords), "amqtt.yaml": fmt.Sprintf(config, port, filepath.Join(dir, "passwd"))} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	brokertest.Start(t, exec.Command(filepath.Join(brokertest.Home(t, "amqtt"), "bin", "amqtt"), "-c", filepath.Join(dir, "amqtt.yaml")), address)

	got := make(chan string, 100)
	var last net.Conn
	connect := func(id string) paho.Client {
		o := paho.NewClientOptions().AddBroker("tcp://" + address).SetProtocolVersion(4).SetClientID(id).SetUsername(id).SetPassword("secret of " + id).SetAutoReconnect(false).
			SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
				var err error
				last, err = net.Dial("tcp", address)
				return last, err
			}).
			SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { got <- id + " is sent " + m.Topic() })
		if id == "dev-1" {
			o.SetWill("b/will", "x", 0, false)
		}
		c := paho.NewClient(o)
		do(t, c.Connect())
		t.Cleanup(func() { c.Disconnect(0) })
		return c
	}
	expect := func(why, want string) {
		t.Helper()
		for {
			select {
			case s := <-got:
				if s == want {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: not so any more", why)
			}
		}
	}
	o := connect("dev-2")
	do(t, o.Subscribe("#", 0, nil))
	do(t, o.Publish("b/kept", 1, true, "x"))
	expect("a message to who may have it", "dev-2 is sent b/kept")

	c := connect("dev-1")
	expect("retained messages of another's subscription", "dev-1 is sent b/kept")
	token := c.Subscribe("a/#", 0, nil)
	do(t, token)
	if code := token.(*paho.SubscribeToken).Result()["a/#"]; code != 0 {
		t.Errorf("a/# with the rule a/+: code %d, want 0", code)
	}
	if err := last.Close(); err != nil { // without a word
		t.Fatal(err)
	}
	expect("a will that publish_acl does not have", "dev-2 is sent b/will")
}
