package mqtt_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/templates/mqtt"
)

// answer is a broker that reads a CONNECT and says reply.
func answer(t *testing.T, reply []byte) (client net.Conn, connect func() []byte) {
	t.Helper()
	client, broker := net.Pipe()
	got := make(chan []byte, 1)
	go func() {
		b := make([]byte, 512)
		n, _ := broker.Read(b)
		got <- b[:n]
		_, _ = broker.Write(reply)
		_ = broker.Close()
	}()
	t.Cleanup(func() { _ = client.Close() })
	return client, func() []byte { return <-got }
}

func TestConnect(t *testing.T) {
	for _, tt := range []struct {
		name  string
		login mqtt.Login
		reply []byte
		want  string // CONNECT
		check func(error) bool
	}{
		{"certificate", mqtt.Login{ClientID: "dev-1"}, []byte{0x20, 2, 0, 0},
			"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05dev-1", func(err error) bool { return err == nil }},
		{"password", mqtt.Login{ClientID: "d", Username: "u", Password: []byte("pw")}, []byte{0x20, 2, 0, 0},
			"\x10\x14\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01d\x00\x01u\x00\x02pw", func(err error) bool { return err == nil }},
		{"refused", mqtt.Login{ClientID: "d"}, []byte{0x20, 2, 0, 5}, "", func(err error) bool {
			var r *mqtt.RefusedError
			return errors.As(err, &r) && r.Code == 5
		}},
		{"closed", mqtt.Login{ClientID: "d"}, nil, "", func(err error) bool { return errors.Is(err, io.EOF) }},
		{"cut", mqtt.Login{ClientID: "d"}, []byte{0x20, 2}, "", func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{"another protocol", mqtt.Login{ClientID: "d"}, []byte("HTTP/1.1 400"), "", func(err error) bool { return errors.Is(err, mqtt.ErrProtocol) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, connect := answer(t, tt.reply)
			err := mqtt.Connect(client, tt.login, time.Now().Add(5*time.Second))
			if !tt.check(err) {
				t.Errorf("error: %v", err)
			}
			if got := connect(); tt.want != "" && !bytes.Equal(got, []byte(tt.want)) {
				t.Errorf("CONNECT is %q, want %q", got, tt.want)
			}
		})
	}
}

func TestConnectRefusesWhatDoesNotFit(t *testing.T) {
	client, _ := net.Pipe()
	if err := mqtt.Connect(client, mqtt.Login{ClientID: string(make([]byte, 1<<16))}, time.Now().Add(time.Second)); err == nil {
		t.Error("a client identifier of 65,536 bytes was sent")
	}
}

// TestSilentBroker: a broker that says nothing costs no longer than the deadline.
func TestSilentBroker(t *testing.T) {
	client, broker := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, broker) }()
	defer func() { _ = broker.Close() }()
	if err := mqtt.Connect(client, mqtt.Login{ClientID: "d"}, time.Now().Add(20*time.Millisecond)); err == nil {
		t.Error("no answer is no error")
	}
}
