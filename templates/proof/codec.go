package proof

import (
	"errors"
	"io"

	v5 "github.com/eclipse/paho.golang/packets"
	v3 "github.com/eclipse/paho.mqtt.golang/packets"
)

// A login is what a client says in CONNECT.
type login struct {
	clientID, user string
	password       []byte
	will           *message
}

// A message is one PUBLISH.
type message struct {
	id      uint16 // of the packet; 0: QoS 0
	topic   string
	payload []byte
	retain  bool
}

// kind is the type of a packet that a client is sent.
type kind uint8

const (
	other kind = iota
	connack
	published
	puback
	suback
	disconnected
)

// A frame is a packet that a client is sent, as far as it matters here.
type frame struct {
	kind kind
	id   uint16
	code byte // of connack, puback, suback
	msg  message
}

// A codec is one version of MQTT.
type codec interface {
	connect(w io.Writer, l login) error
	publish(w io.Writer, m message) error
	subscribe(w io.Writer, id uint16, filter string) error
	ack(w io.Writer, id uint16) error
	disconnect(w io.Writer) error
	read(r io.Reader) (frame, error)
}

// keepAlive is longer than any session here, in seconds.
const keepAlive = 600

// codec3 is MQTT 3.1.1.
type codec3 struct{}

func (codec3) connect(w io.Writer, l login) error {
	p, ok := v3.NewControlPacket(v3.Connect).(*v3.ConnectPacket)
	if !ok {
		return errors.ErrUnsupported
	}
	p.ProtocolName, p.ProtocolVersion, p.CleanSession, p.Keepalive = "MQTT", 4, true, keepAlive
	p.ClientIdentifier = l.clientID
	p.UsernameFlag, p.Username = l.user != "", l.user
	p.PasswordFlag, p.Password = len(l.password) > 0, l.password
	if l.will != nil {
		p.WillFlag, p.WillTopic, p.WillMessage = true, l.will.topic, l.will.payload
	}
	return p.Write(w)
}

func (codec3) publish(w io.Writer, m message) error {
	p, ok := v3.NewControlPacket(v3.Publish).(*v3.PublishPacket)
	if !ok {
		return errors.ErrUnsupported
	}
	p.TopicName, p.Payload, p.Retain, p.MessageID = m.topic, m.payload, m.retain, m.id
	if m.id != 0 {
		p.Qos = 1
	}
	return p.Write(w)
}

func (codec3) subscribe(w io.Writer, id uint16, filter string) error {
	p, ok := v3.NewControlPacket(v3.Subscribe).(*v3.SubscribePacket)
	if !ok {
		return errors.ErrUnsupported
	}
	p.MessageID, p.Topics, p.Qoss = id, []string{filter}, []byte{0}
	return p.Write(w)
}

func (codec3) ack(w io.Writer, id uint16) error {
	p, ok := v3.NewControlPacket(v3.Puback).(*v3.PubackPacket)
	if !ok {
		return errors.ErrUnsupported
	}
	p.MessageID = id
	return p.Write(w)
}

func (codec3) disconnect(w io.Writer) error { return v3.NewControlPacket(v3.Disconnect).Write(w) }

func (codec3) read(r io.Reader) (frame, error) {
	p, err := v3.ReadPacket(r)
	if err != nil {
		return frame{}, err
	}
	switch p := p.(type) {
	case *v3.ConnackPacket:
		return frame{kind: connack, code: p.ReturnCode}, nil
	case *v3.PublishPacket:
		return frame{kind: published, msg: message{id: p.MessageID, topic: p.TopicName, payload: p.Payload, retain: p.Retain}}, nil
	case *v3.PubackPacket:
		return frame{kind: puback, id: p.MessageID}, nil
	case *v3.SubackPacket:
		f := frame{kind: suback, id: p.MessageID, code: failure}
		if len(p.ReturnCodes) == 1 {
			f.code = p.ReturnCodes[0]
		}
		return f, nil
	}
	return frame{}, nil
}

// codec5 is MQTT 5.
type codec5 struct{}

func (codec5) connect(w io.Writer, l login) error {
	p := v5.NewControlPacket(v5.CONNECT)
	c, ok := p.Content.(*v5.Connect)
	if !ok {
		return errors.ErrUnsupported
	}
	c.ProtocolName, c.ProtocolVersion, c.CleanStart, c.KeepAlive = "MQTT", 5, true, keepAlive
	c.ClientID = l.clientID
	c.UsernameFlag, c.Username = l.user != "", l.user
	c.PasswordFlag, c.Password = len(l.password) > 0, l.password
	if l.will != nil {
		c.WillFlag, c.WillTopic, c.WillMessage = true, l.will.topic, l.will.payload
		c.WillProperties = &v5.Properties{}
	}
	_, err := p.WriteTo(w)
	return err
}

func (codec5) publish(w io.Writer, m message) error {
	p := v5.NewControlPacket(v5.PUBLISH)
	c, ok := p.Content.(*v5.Publish)
	if !ok {
		return errors.ErrUnsupported
	}
	c.Topic, c.Payload, c.Retain, c.PacketID = m.topic, m.payload, m.retain, m.id
	if m.id != 0 {
		c.QoS = 1
	}
	_, err := p.WriteTo(w)
	return err
}

func (codec5) subscribe(w io.Writer, id uint16, filter string) error {
	p := v5.NewControlPacket(v5.SUBSCRIBE)
	c, ok := p.Content.(*v5.Subscribe)
	if !ok {
		return errors.ErrUnsupported
	}
	c.PacketID, c.Subscriptions = id, []v5.SubOptions{{Topic: filter}}
	_, err := p.WriteTo(w)
	return err
}

func (codec5) ack(w io.Writer, id uint16) error {
	p := v5.NewControlPacket(v5.PUBACK)
	c, ok := p.Content.(*v5.Puback)
	if !ok {
		return errors.ErrUnsupported
	}
	c.PacketID = id
	_, err := p.WriteTo(w)
	return err
}

func (codec5) disconnect(w io.Writer) error {
	_, err := v5.NewControlPacket(v5.DISCONNECT).WriteTo(w)
	return err
}

func (codec5) read(r io.Reader) (frame, error) {
	p, err := v5.ReadPacket(r)
	if err != nil {
		return frame{}, err
	}
	switch c := p.Content.(type) {
	case *v5.Connack:
		return frame{kind: connack, code: c.ReasonCode}, nil
	case *v5.Publish:
		return frame{kind: published, msg: message{id: c.PacketID, topic: c.Topic, payload: c.Payload, retain: c.Retain}}, nil
	case *v5.Puback:
		return frame{kind: puback, id: c.PacketID, code: c.ReasonCode}, nil
	case *v5.Suback:
		f := frame{kind: suback, id: c.PacketID, code: failure}
		if len(c.Reasons) == 1 {
			f.code = c.Reasons[0]
		}
		return f, nil
	case *v5.Disconnect:
		return frame{kind: disconnected, code: c.ReasonCode}, nil
	}
	return frame{}, nil
}

// failure is the first code that is a refusal, in SUBACK of both versions and in
// every packet of MQTT 5.
const failure = 0x80
