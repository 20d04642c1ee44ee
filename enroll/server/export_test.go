package server

// RouteNames lists the routes of s as "METHOD pattern".
func RouteNames(s *Server) []string {
	var names []string
	for _, r := range s.routes {
		names = append(names, r.method+" "+r.pattern)
	}
	return names
}
