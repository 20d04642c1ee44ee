package enroll

import "fmt"

// Candidates looks for equal keys in a search that spills after length sightings.
// Keys are on lines from 1 on.
func Candidates(length int, keys []string) ([][]int, error) {
	d := newDuplicates()
	defer d.close()
	d.length = length
	for i, key := range keys {
		if err := d.add(key, i+1); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return d.candidates(len(keys))
}
