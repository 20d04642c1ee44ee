package akenza

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator knows the devices of a list and the topics that Akenza documents. It
// shares nothing with what writes the files.
type evaluator map[string]bool

func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	e := evaluator{}
	var setting struct{ Form string }
	text, err := fs.ReadFile(src, "export.json")
	if err == nil {
		err = json.Unmarshal(text, &setting)
	}
	if err != nil {
		return nil, err
	}
	if setting.Form == "json" {
		var list struct {
			Devices []struct{ DeviceID, PublicKey string }
		}
		text, err := fs.ReadFile(src, "devices.json")
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, err
		}
		for _, d := range list.Devices {
			e[d.DeviceID] = strings.Contains(d.PublicKey, "BEGIN PUBLIC KEY")
		}
		return e, nil
	}
	f, err := src.Open("devices.csv")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 || len(rows[0]) < 6 {
		return nil, errors.New("no columns in devices.csv")
	}
	for _, row := range rows[1:] {
		e[row[0]] = strings.Contains(row[5], "BEGIN PUBLIC KEY")
	}
	return e, nil
}

// Answer implements [proof.Evaluator]. What is documented is the topic of a device and
// the topics below it, and one subscription.
func (e evaluator) Answer(q proof.Question) (proof.Answer, error) {
	up, down := "/up/device/id/"+q.Device, "/down/device/id/"+q.Device
	allowed := false
	switch q.Verb {
	case proof.Publish, proof.Will, proof.Retain:
		allowed = q.Topic == up || strings.HasPrefix(q.Topic, up+"/")
	case proof.Receive:
		allowed = q.Topic == down || strings.HasPrefix(q.Topic, down+"/")
	case proof.Subscribe:
		allowed = q.Topic == down+"/#"
	case proof.Connect:
	}
	if allowed && e[q.Device] {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}
