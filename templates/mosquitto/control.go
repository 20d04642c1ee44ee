package mosquitto

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/google/uuid"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// Topics of the dynamic security plugin. Answers go to everybody who listens.
const (
	controlTopic  = "$CONTROL/dynamic-security/v1"
	responseTopic = "$CONTROL/dynamic-security/v1/response"
)

// Sizes of what is asked at once.
const (
	controlPage  = 500
	controlBatch = 100 // commands in one message
)

// A dynsecCommand is one command of the plugin; the fields that count depend on
// its name (mosquitto, plugins/dynamic-security).
type dynsecCommand struct {
	Command     string          `json:"command"`
	Correlation string          `json:"correlationData,omitempty"`
	Username    string          `json:"username,omitempty"`
	Password    string          `json:"password,omitempty"` // in the clear, through the socket
	TextName    string          `json:"textname,omitempty"`
	RoleName    string          `json:"rolename,omitempty"`
	Roles       []dynsecRoleRef `json:"roles,omitempty"`
	ACLs        *[]dynsecACL    `json:"acls,omitempty"`
	Verbose     bool            `json:"verbose,omitempty"`
	Count       int             `json:"count,omitempty"`
	Offset      int             `json:"offset,omitempty"`
}

type dynsecAnswer struct {
	Command     string `json:"command"`
	Error       string `json:"error"`
	Correlation string `json:"correlationData"`
	Data        struct {
		Total   int            `json:"totalCount"`
		Clients []dynsecClient `json:"clients"`
		Roles   []dynsecRole   `json:"roles"`
	} `json:"data"`
}

// A controller talks to the plugin.
type controller struct {
	mqtt    *paho.Client
	answers chan []byte
	ended   chan struct{}
}

// control brings a running broker to what its file says. It reports whether the
// broker has changed anything. The plugin takes passwords and no hashes: who is new
// or has another password, and not one of o.Passwords, gets in when the broker is
// started again.
func (d *driver) control(ctx context.Context, o templates.Options) (bool, error) {
	want, err := d.wanted()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*d.live.Timeout)
	defer cancel()
	c, err := d.controller(ctx)
	if err != nil {
		return false, err
	}
	defer c.close()
	have, err := c.state(ctx)
	if err != nil {
		return false, err
	}
	commands, late := difference(want, have, d.live.User, o.Passwords)
	if late > 0 && o.Warn != nil {
		o.Warn(fmt.Sprintf("%d devices with a password can log in when the broker has been started again: dynamic security takes no hashes while it runs", late))
	}
	for batch := range slices.Chunk(commands, controlBatch) {
		answers, err := c.do(ctx, batch)
		if err != nil {
			return true, err
		}
		for _, a := range answers {
			if a.Error != "" && !strings.HasSuffix(a.Error, "not found") {
				return true, fmt.Errorf("mosquitto: %s: %.128q", a.Command, a.Error)
			}
		}
	}
	return len(commands) > 0, nil
}

// wanted reads the file that has just been written.
func (d *driver) wanted() (*dynsecFile, error) {
	f, err := templates.OpenFile(d.live.Dir.FS(), DynsecName)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	return readDynsec(io.LimitReader(f, maxDynsec))
}

// difference lists what makes have into want: what takes rights away comes first.
// A client is compared by its roles, since the plugin does not say its password;
// late counts those that cannot be told because of it.
func difference(want, have *dynsecFile, admin string, passwords map[inventory.DeviceID]inventory.Secret) (commands []dynsecCommand, late int) {
	clients := make(map[string]*dynsecClient, len(want.Clients))
	for i := range want.Clients {
		clients[want.Clients[i].Username] = &want.Clients[i]
	}
	roles := make(map[string]*dynsecRole, len(want.Roles))
	for i := range want.Roles {
		roles[want.Roles[i].Name] = &want.Roles[i]
	}
	known := map[string]bool{}
	for i := range have.Clients {
		c := &have.Clients[i]
		w := clients[c.Username]
		if c.Username != admin && (w == nil || !sameRoles(w.Roles, c.Roles)) {
			commands = append(commands, dynsecCommand{Command: "deleteClient", Username: c.Username})
			continue
		}
		known[c.Username] = true
	}
	shown := map[string]bool{}
	for i := range have.Roles {
		r := &have.Roles[i]
		w := roles[r.Name]
		shown[r.Name] = w != nil
		switch {
		case w == nil:
			commands = append(commands, dynsecCommand{Command: "deleteRole", RoleName: r.Name})
		case !sameACLs(w.ACLs, r.ACLs):
			commands = append(commands, dynsecCommand{Command: "modifyRole", RoleName: r.Name, ACLs: &w.ACLs})
		}
	}
	for i := range want.Roles {
		if r := &want.Roles[i]; !shown[r.Name] {
			commands = append(commands, dynsecCommand{Command: "createRole", RoleName: r.Name, ACLs: &r.ACLs})
		}
	}
	for i := range want.Clients {
		c := &want.Clients[i]
		switch {
		case known[c.Username]:
			if secret, ok := passwords[inventory.DeviceID(c.Username)]; ok {
				commands = append(commands, dynsecCommand{Command: "setClientPassword", Username: c.Username, Password: string(secret.Reveal())})
			}
		case len(c.Password) > 0 && !knows(passwords, c.Username):
			late++
		default:
			secret := passwords[inventory.DeviceID(c.Username)]
			commands = append(commands, dynsecCommand{Command: "createClient", Username: c.Username, TextName: c.TextName, Roles: c.Roles, Password: string(secret.Reveal())})
		}
	}
	return commands, late
}

func knows(passwords map[inventory.DeviceID]inventory.Secret, user string) bool {
	_, ok := passwords[inventory.DeviceID(user)]
	return ok
}

func sameRoles(a, b []dynsecRoleRef) bool {
	return slices.EqualFunc(a, b, func(x, y dynsecRoleRef) bool { return x.Name == y.Name })
}

// sameACLs compares sets: the plugin keeps them in its own order.
func sameACLs(a, b []dynsecACL) bool {
	set := func(list []dynsecACL) map[dynsecACL]bool {
		m := make(map[dynsecACL]bool, len(list))
		for _, x := range list {
			m[x] = true
		}
		return m
	}
	return reflect.DeepEqual(set(a), set(b))
}

// controller connects and listens for answers.
func (d *driver) controller(ctx context.Context) (*controller, error) {
	conn, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &controller{answers: make(chan []byte, 16), ended: make(chan struct{})}
	end := sync.OnceFunc(func() { close(c.ended) })
	id := "imprint-" + uuid.NewString()
	c.mqtt = paho.NewClient(paho.ClientConfig{
		ClientID: id, Conn: packets.NewThreadSafeConn(conn), PacketTimeout: d.live.Timeout,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			select {
			case c.answers <- p.Packet.Payload:
			case <-c.ended:
			}
			return true, nil
		}},
		OnClientError:      func(error) { end() },
		OnServerDisconnect: func(*paho.Disconnect) { end() },
	})
	c.mqtt.SetErrorLogger(log.New(io.Discard, "", 0))
	ack, err := c.mqtt.Connect(ctx, &paho.Connect{
		ClientID: id, KeepAlive: 60, CleanStart: true,
		Username: d.live.User, UsernameFlag: true, Password: d.live.Secret.Reveal(), PasswordFlag: true,
	})
	if err != nil {
		if ack != nil {
			err = fmt.Errorf("CONNACK code 0x%02x", ack.ReasonCode)
		}
		return nil, fmt.Errorf("%w: logging in as %s: %w", templates.ErrUnreachable, d.live.User, err)
	}
	if _, err := c.mqtt.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: responseTopic, QoS: 1}}}); err != nil {
		c.close()
		return nil, fmt.Errorf("%w: listening to dynamic security: %w", templates.ErrUnreachable, err)
	}
	return c, nil
}

func (c *controller) close() { _ = c.mqtt.Disconnect(&paho.Disconnect{}) }

// do sends commands in one message and returns their answers, in order.
func (c *controller) do(ctx context.Context, commands []dynsecCommand) ([]dynsecAnswer, error) {
	mark := uuid.NewString()
	for i := range commands {
		commands[i].Correlation = mark
	}
	body, err := json.Marshal(map[string]any{"commands": commands})
	if err != nil {
		return nil, fmt.Errorf("encoding commands: %w", err)
	}
	if _, err := c.mqtt.Publish(ctx, &paho.Publish{Topic: controlTopic, QoS: 1, Payload: body}); err != nil {
		return nil, fmt.Errorf("%w: sending commands: %w", templates.ErrUnreachable, err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: waiting for dynamic security: %w", templates.ErrUnreachable, ctx.Err())
		case <-c.ended:
			return nil, fmt.Errorf("%w: it has closed the connection", templates.ErrUnreachable)
		case b := <-c.answers:
			var got struct {
				Responses []dynsecAnswer `json:"responses"`
			}
			if err := json.Unmarshal(b, &got); err != nil {
				return nil, fmt.Errorf("reading the answer of dynamic security: %w", err)
			}
			if len(got.Responses) == 0 || got.Responses[0].Correlation != mark {
				continue // somebody else's
			}
			if len(got.Responses) != len(commands) {
				return nil, errors.New("mosquitto: dynamic security answers another number of commands")
			}
			return got.Responses, nil
		}
	}
}

// state asks for all clients and roles.
func (c *controller) state(ctx context.Context) (*dynsecFile, error) {
	var have dynsecFile
	for {
		a, err := c.list(ctx, "listClients", len(have.Clients))
		if err != nil {
			return nil, err
		}
		have.Clients = append(have.Clients, a.Data.Clients...)
		if len(a.Data.Clients) == 0 || len(have.Clients) >= a.Data.Total {
			break
		}
	}
	for {
		a, err := c.list(ctx, "listRoles", len(have.Roles))
		if err != nil {
			return nil, err
		}
		have.Roles = append(have.Roles, a.Data.Roles...)
		if len(a.Data.Roles) == 0 || len(have.Roles) >= a.Data.Total {
			return &have, nil
		}
	}
}

func (c *controller) list(ctx context.Context, command string, offset int) (dynsecAnswer, error) {
	answers, err := c.do(ctx, []dynsecCommand{{Command: command, Verbose: true, Count: controlPage, Offset: offset}})
	if err != nil {
		return dynsecAnswer{}, err
	}
	if answers[0].Error != "" {
		return dynsecAnswer{}, fmt.Errorf("mosquitto: %s: %.128q", command, answers[0].Error)
	}
	return answers[0], nil
}
